"""What the `config.json` of a diffusers model states, in our options' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# `_class_name` -> {diffusers' option: ours}, of those that no tensor states or that are worth comparing with the tensors.
_NAMES = {
    "UVit2DModel": {
        "codebook_size": "codebook_size",
        "vocab_size": "vocabulary",
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "mlp_width",
        "block_num_heads": "block_heads",
    },
    "VQModel": {"num_vq_embeddings": "codebook_size", "latent_channels": "latent_dim", "norm_num_groups": "norm_groups"},
}


def diffusers_options(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """{our option: value} of a known diffusers model; None for any other configuration."""
    kind = tree.get("_class_name")
    names = _NAMES.get(kind) if isinstance(kind, str) else None
    if names is None:
        return None
    stated = {ours: tree[theirs] for theirs, ours in names.items() if theirs in tree}
    if kind == "UVit2DModel" and type(side := tree.get("sample_size")) is int:  # counted in codes
        stated |= {"image_size": side, "downsample_size": 1}
    return stated
