"""Tables of MaskGIL's and LlamaGen's generators: the names of their tensors in PyTorch files, and their sizes.

Sources of the names: the published code of both.
"""

from __future__ import annotations

from typing import Any

from maskgil_jax.config import LlamaConfig

from ..engine import LINEAR, Ignored, Rule, Table, linear, rule
from ..readers.checkpoint import Problem
from ..sizes import Sizes

_JOINT_TABLE = Rule(("tokens/embedding", "classes/embedding"), "tok_emb.weight")  # codes, [MASK], classes, null class
_BLOCK = "layers.{layer}."
_LLAMA = (
    Rule(("layers/attn/q/kernel", "layers/attn/k/kernel", "layers/attn/v/kernel"), _BLOCK + "attention.wqkv.weight", LINEAR),
    rule("layers/attn/o/kernel", _BLOCK + "attention.wo.weight", LINEAR),
    rule("layers/mlp/gate/kernel", _BLOCK + "feed_forward.w1.weight", LINEAR),
    rule("layers/mlp/up/kernel", _BLOCK + "feed_forward.w3.weight", LINEAR),
    rule("layers/mlp/down/kernel", _BLOCK + "feed_forward.w2.weight", LINEAR),
    rule("layers/attn_norm/scale", _BLOCK + "attention_norm.weight"),
    rule("layers/mlp_norm/scale", _BLOCK + "ffn_norm.weight"),
    rule("norm/scale", "norm.weight"),
    *linear("head", "output", bias=False),
)
_ROPE = Ignored("freqs_cis", "the rotation table, which is computed")


def maskgil_table(cfg: LlamaConfig) -> Table:
    """MaskGIL's published network: one table for codes, [MASK] and classes; a head that scores [MASK] too."""
    return Table((_JOINT_TABLE, *_LLAMA), (_ROPE,))


def llamagen_table(cfg: LlamaConfig) -> Table:
    """LlamaGen's class-conditional AR network.

    It has no [MASK]: our row for it is zeros, and no causal model reads it.
    """
    tables = (
        Rule(("tokens/embedding",), "tok_embeddings.weight", zero_rows=1),
        rule("classes/embedding", "cls_embedding.embedding_table.weight"),
    )
    return Table((*tables, *_LLAMA), (_ROPE,))


def llamagen_t2i_table(cfg: LlamaConfig) -> Table:
    """LlamaGen's text-conditional AR network: an MLP for the text's features, and the null text,
    random and not trained."""
    caption = (
        *linear("caption_up", "cls_embedding.cap_proj.fc1", bias=False),
        *linear("caption_down", "cls_embedding.cap_proj.fc2", bias=False),
        rule("caption_null", "cls_embedding.uncond_embedding"),
    )
    return Table((Rule(("tokens/embedding",), "tok_embeddings.weight", zero_rows=1), *caption, *_LLAMA), (_ROPE,))


def maskgil_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LlamaConfig`: the codebook from the head, the classes from the joint table."""
    scores, rows = sizes.of("output.weight", 2)[0], sizes.of("tok_emb.weight", 2)[0]
    if rows < scores + 2:
        raise Problem(f"tok_emb.weight: its {rows} rows cannot hold output.weight's {scores} codes, a class and the null class")
    return _llama(sizes) | {"codebook_size": scores - 1, "num_classes": rows - scores - 1}


def llamagen_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LlamaConfig` for LlamaGen. A network trained without class dropout has no row for the null class."""
    table = "cls_embedding.embedding_table.weight"
    num_classes, null_class = sizes.classes(table, sizes.of(table, 2)[0])
    codebook_size = sizes.of("tok_embeddings.weight", 2)[0]
    return _llama(sizes) | {"codebook_size": codebook_size, "num_classes": num_classes, "null_class": null_class}


def llamagen_t2i_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LlamaConfig` for LlamaGen's text-conditional network.

    Length and width of a text from the null text.
    """
    text_tokens, text_dim = sizes.of("cls_embedding.uncond_embedding", 2)
    codebook_size = sizes.of("tok_embeddings.weight", 2)[0]
    return _llama(sizes) | {"codebook_size": codebook_size, "text_tokens": text_tokens, "text_dim": text_dim}


def _llama(sizes: Sizes) -> dict[str, Any]:
    (width,), depth = sizes.of("norm.weight", 1), sizes.count(r"layers\.(\d+)\.")
    heads = sizes.heads(width, depth)
    qkv = sizes.of("layers.0.attention.wqkv.weight", 2)[0]
    head_dim = max(1, width // heads)
    kv_heads, odd = divmod(qkv - width, 2 * head_dim)
    if odd or kv_heads < 1:
        shape = f"{heads} heads of queries and some of keys and values, each {head_dim} wide"
        raise Problem(f"layers.0.attention.wqkv.weight: its {qkv} rows are not {shape}: --set heads=N")
    return {
        "width": width,
        "depth": depth,
        "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "mlp_width": sizes.of("layers.0.feed_forward.w1.weight", 2)[0],
        "grid": sizes.grid(),
    }
