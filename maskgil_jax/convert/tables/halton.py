"""Table of Halton-MaskGIT's Transformer: the names of its tensors in published PyTorch files, and its sizes."""

from __future__ import annotations

from typing import Any

from maskgil_jax.config import AdaLNConfig

from ..engine import Ignored, Table, linear, rule
from ..sizes import Sizes

_BLOCK = "transformer.layers.{layer}."


def halton_table(cfg: AdaLNConfig) -> Table:
    """The head is tied to the token table; the file holds the table twice, and the second must be a copy."""
    return Table(
        (
            rule("tokens/embedding", "tok_emb.weight"),
            rule("classes/embedding", "cls_emb.weight"),
            rule("positions/embedding", "pos_emb.weight"),
            rule("registers/embedding", "reg_tokens.weight"),
            *linear("layers/modulation", _BLOCK + "mlp.1"),
            rule("layers/attn_norm/scale", _BLOCK + "ln1.weight"),
            rule("layers/mlp_norm/scale", _BLOCK + "ln2.weight"),
            *(rule for part in "qkvo" for rule in linear(f"layers/attn/{part}", f"{_BLOCK}attn.w{part}", bias=False)),
            *linear("layers/mlp/gate", _BLOCK + "ff.w1", bias=False),
            *linear("layers/mlp/up", _BLOCK + "ff.w3", bias=False),
            *linear("layers/mlp/down", _BLOCK + "ff.w2", bias=False),
            *linear("last_norm/modulation", "last_norm.mlp.1"),
            rule("last_norm/norm/scale", "last_norm.norm_final.weight"),
            rule("last_norm/bias", "last_norm.norm_final.bias"),
            rule("head_bias", "head.bias"),
        ),
        (Ignored(r"head\.weight", "the head, tied to the token table", written="tok_emb.weight", exact=True),),
    )


def halton_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `AdaLNConfig`. All heads together may be narrower than the network."""
    rows, width = sizes.of("tok_emb.weight", 2)
    depth = sizes.count(r"transformer\.layers\.(\d+)\.")
    return {
        "codebook_size": rows - 1,
        "num_classes": sizes.of("cls_emb.weight", 2)[0] - 1,
        "grid": sizes.grid_of("pos_emb.weight", sizes.of("pos_emb.weight", 2)[0]),
        "width": width,
        "depth": depth,
        "heads": sizes.heads(sizes.of("transformer.layers.0.attn.wq.weight", 2)[0], depth),
        "mlp_width": sizes.of("transformer.layers.0.ff.w1.weight", 2)[0],
        "registers": sizes.of("reg_tokens.weight", 2)[0] if sizes.has(r"reg_tokens\.") else 0,
    }
