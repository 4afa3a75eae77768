"""Tables of the generators: where their tensors lie in published PyTorch files, and how to tell their sizes.

Sources of the names: the published code of MaskGIL, LlamaGen and MaskGIT-pytorch (Besnier and Chen).
"""

from __future__ import annotations

import math
from typing import Any

from maskgil_jax.config import BertConfig, LlamaConfig

from .checkpoint import Problem
from .rules import BATCH_OF_ONE, LINEAR, SAME, Ignored, Rule, Table, linear, norm, rule
from .sizes import Sizes

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
    """LlamaGen's class-conditional AR network. It has no [MASK]: our row for it is zeros, and no causal model reads it."""
    tables = (
        Rule(("tokens/embedding",), "tok_embeddings.weight", zero_rows=1),
        rule("classes/embedding", "cls_embedding.embedding_table.weight"),
    )
    return Table((*tables, *_LLAMA), (_ROPE,))


def llamagen_t2i_table(cfg: LlamaConfig) -> Table:
    """LlamaGen's text-conditional AR network: an MLP for the text's features, and the null text, random and never trained."""
    caption = (
        *linear("caption_up", "cls_embedding.cap_proj.fc1", bias=False),
        *linear("caption_down", "cls_embedding.cap_proj.fc2", bias=False),
        rule("caption_null", "cls_embedding.uncond_embedding"),
    )
    return Table((Rule(("tokens/embedding",), "tok_embeddings.weight", zero_rows=1), *caption, *_LLAMA), (_ROPE,))


def besnier_table(cfg: BertConfig) -> Table:
    """MaskGIT-pytorch's Transformer: learned positions, a small MLP before and after the blocks, one bias per score."""
    block = "transformer.layers.{layer}."
    in_proj = tuple(f"layers/attn/{n}/{{}}" for n in "qkv")
    return Table(
        (
            _JOINT_TABLE,
            rule("positions/embedding", "pos_emb", BATCH_OF_ONE),
            rule("head_bias", "bias"),
            *norm("first_norm", "first_layer.0"),
            *linear("first_up", "first_layer.2"),
            *norm("first_mid_norm", "first_layer.4"),
            *linear("first_down", "first_layer.6"),
            Rule(tuple(path.format("kernel") for path in in_proj), block + "0.fn.mha.in_proj_weight", LINEAR),
            Rule(tuple(path.format("bias") for path in in_proj), block + "0.fn.mha.in_proj_bias", SAME),
            *linear("layers/attn/o", block + "0.fn.mha.out_proj"),
            *linear("layers/mlp/up", block + "1.fn.net.0"),
            *linear("layers/mlp/down", block + "1.fn.net.3"),
            *norm("layers/attn_norm", block + "0.norm"),
            *norm("layers/mlp_norm", block + "1.norm"),
            *norm("last_norm", "last_layer.0"),
            *linear("last_linear", "last_layer.2"),
            *norm("head_norm", "last_layer.4"),
        )
    )


def maskgil_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LlamaConfig`; the head tells the codebook, the joint table the classes."""
    scores, rows = sizes.of("output.weight", 2)[0], sizes.of("tok_emb.weight", 2)[0]
    if rows < scores + 2:
        raise Problem(f"tok_emb.weight: its {rows} rows cannot hold output.weight's {scores} codes, a class and the null class")
    return _llama(sizes) | {"codebook_size": scores - 1, "num_classes": rows - scores - 1}


def llamagen_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LlamaConfig` for LlamaGen."""
    return _llama(sizes) | {
        "codebook_size": sizes.of("tok_embeddings.weight", 2)[0],
        "num_classes": sizes.of("cls_embedding.embedding_table.weight", 2)[0] - 1,
    }


def llamagen_t2i_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LlamaConfig` for LlamaGen's text-conditional network; the null text tells how long and wide a text is."""
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


def besnier_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `BertConfig`. The joint table does not tell codes from classes: 1000 classes unless given."""
    rows, width = sizes.of("tok_emb.weight", 2)
    num_classes = sizes.given.get("num_classes")
    if num_classes is None:
        num_classes = 1000
        sizes.notes.append("num_classes = 1000: the file does not say")
    if rows - num_classes < 4:
        raise Problem(f"tok_emb.weight: its {rows} rows cannot hold {num_classes} classes and a codebook: --set num_classes=N")
    side = math.isqrt(sizes.of("pos_emb", 3)[1] - 1)
    depth = sizes.count(r"transformer\.layers\.(\d+)\.")
    return {
        "codebook_size": rows - num_classes - 2,
        "num_classes": num_classes,
        "grid": (max(side, 1),) * 2,
        "width": width,
        "depth": depth,
        "heads": sizes.heads(width, depth),
        "mlp_width": sizes.of("transformer.layers.0.1.fn.net.0.weight", 2)[0],
    }
