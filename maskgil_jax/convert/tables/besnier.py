"""Table of MaskGIT-pytorch's Transformer (Besnier and Chen), which MaskGIL's baseline uses too: tensor names and sizes.

Source of the names: the published code.
"""

from __future__ import annotations

from typing import Any

from maskgil_jax.config import BertConfig

from ..engine import BATCH_OF_ONE, LINEAR, SAME, Rule, Table, linear, norm, rule
from ..sizes import Sizes

_JOINT_TABLE = Rule(("tokens/embedding", "classes/embedding"), "tok_emb.weight")  # codes, [MASK], classes, null class


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


def besnier_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `BertConfig`. The joint table does not separate codes from classes: 1000 classes unless given."""
    rows, width = sizes.of("tok_emb.weight", 2)
    codebook_size, num_classes = sizes.joint_table("tok_emb.weight", rows, 2)
    depth = sizes.count(r"transformer\.layers\.(\d+)\.")
    return {
        "codebook_size": codebook_size,
        "num_classes": num_classes,
        "grid": sizes.grid_of("pos_emb", sizes.of("pos_emb", 3)[1] - 1),
        "width": width,
        "depth": depth,
        "heads": sizes.heads(width, depth),
        "mlp_width": sizes.of("transformer.layers.0.1.fn.net.0.weight", 2)[0],
    }
