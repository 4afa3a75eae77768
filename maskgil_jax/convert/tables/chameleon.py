"""Table of Chameleon's language model in Hugging Face's layout, which Lumina-mGPT's files have too, and its sizes."""

from __future__ import annotations

from typing import Any

from maskgil_jax.config import ChameleonConfig

from ..engine import LINEAR, Ignored, Layout, Rule, Table, linear, rule
from ..readers.checkpoint import Problem
from ..sizes import Sizes

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."


def table(cfg: ChameleonConfig) -> Table:
    """The head is cut into the rows of image tokens and those before and after.

    Rotary halves become neighbouring pairs.
    """
    rotary = Layout((1, 0), halves=cfg.head_dim)
    above = cfg.vocabulary - cfg.first_image_id - cfg.codebook_size
    if cfg.text_head:
        low, high = ("text_head_low/kernel",) * bool(cfg.first_image_id), ("text_head_high/kernel",) * bool(above)
        head = Rule((*low, "head/kernel", *high), "lm_head.weight", LINEAR)
    else:
        head = rule("head/kernel", "lm_head.weight", LINEAR)
    return Table(
        (
            rule("tokens/embedding", "model.embed_tokens.weight"),
            rule("layers/attn/{part:q|k}/kernel", _ATTENTION + "{part}_proj.weight", rotary),
            *linear("layers/attn/{part:v|o}", _ATTENTION + "{part}_proj", bias=False),
            rule("layers/attn/{part:q_norm|k_norm}/scale", _ATTENTION + "{part}.weight", Layout(halves=cfg.head_dim)),
            rule("layers/attn/{part:q_norm|k_norm}/bias", _ATTENTION + "{part}.bias", Layout(halves=cfg.head_dim)),
            *linear("layers/mlp/{part:gate|up|down}", _LAYER + "mlp.{part}_proj", bias=False),
            rule("layers/attn_norm/scale", _LAYER + "input_layernorm.weight"),
            rule("layers/mlp_norm/scale", _LAYER + "post_attention_layernorm.weight"),
            rule("norm/scale", "model.norm.weight"),
            head,
        ),
        (
            Ignored(r"model\.vqmodel\..*", "the image tokenizer, without its decoder: convert Chameleon's vqgan.ckpt"),
            Ignored(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "the rotation table, which is computed"),
        ),
    )


def sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `ChameleonConfig`; tokens are those that the vocabulary beside the weights names."""
    vocabulary, width = sizes.of("model.embed_tokens.weight", 2)
    groups, head_dim = sizes.of("model.layers.0.self_attn.q_norm.weight", 2)
    kv_width = sizes.of("model.layers.0.self_attn.k_proj.weight", 2)[0]
    if width % head_dim or kv_width % head_dim:
        raise Problem(
            f"model.layers.0.self_attn.q_norm.weight: heads {head_dim} wide do not divide {width} queries and {kv_width} keys"
        )
    heads, kv_heads = width // head_dim, kv_width // head_dim
    found: dict[str, Any] = {name: sizes.given.get(name) for name in ("image_ids", *_TOKENS)}
    if missing := [name for name, value in found.items() if value is None]:
        raise Problem(
            f"{missing[0]}: the weights do not say which token stands for which code; put config.json with its "
            "vocabulary_map, or tokenizer.json, beside them"
        )
    sizes.unstated |= {*found, "codebook_size", "first_image_id"}
    ids = tuple(found["image_ids"])
    in_order = ids == tuple(range(ids[0], ids[0] + len(ids)))
    return {
        **found,
        "image_ids": () if in_order else ids,
        "first_image_id": min(ids),
        "codebook_size": len(ids),
        "vocabulary": vocabulary,
        "grid": sizes.assume("grid", (32, 32), "512 pixels, as Lumina-mGPT-7B-512", "32x32"),
        "width": width,
        "depth": sizes.count(r"model\.layers\.(\d+)\."),
        "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "mlp_width": sizes.of("model.layers.0.mlp.gate_proj.weight", 2)[0],
        "qk_norm_groups": groups,
    }


_TOKENS = ("end_image", "begin_image", "end_turn", "newline", "size_zero")
# The entry of `families.FAMILIES`, but for its title and names.
LANGUAGE_MODEL: dict[str, Any] = {
    "kind": "generator",
    "licence": "Chameleon Research License: non-commercial research only, also for what is made from it (Lumina-mGPT)",
    "container": "bare",
    "options": ChameleonConfig,
    "fixed": {"norm_eps": 1e-5, "rope_base": 10000.0, "swin_norm": False, "size_unit": 2, "text_head": True},
    "settable": ("grid", "image_ids", *_TOKENS),
    "table": table,
    "sizes": sizes,
    "decode": {"guidance": 4.0, "top_k": 2000},
}
