"""What the `config.json` of a diffusers model states about the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# "class.option" of diffusers -> our option, of those that no tensor states or that are worth comparing with the
# tensors.
DIFFUSERS_NAMES = {
    "UVit2DModel.codebook_size": "codebook_size",
    "UVit2DModel.vocab_size": "vocabulary",
    "UVit2DModel.hidden_size": "width",
    "UVit2DModel.num_hidden_layers": "depth",
    "UVit2DModel.num_attention_heads": "heads",
    "UVit2DModel.intermediate_size": "mlp_width",
    "UVit2DModel.block_num_heads": "block_heads",
    "VQModel.num_vq_embeddings": "codebook_size",
    "VQModel.latent_channels": "latent_dim",
    "VQModel.norm_num_groups": "norm_groups",
}


def diffusers_options(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"class.option": value} of a known diffusers model; None for any other configuration."""
    kind = tree.get("_class_name")
    stated = {name: tree.get(name.partition(".")[2]) for name in DIFFUSERS_NAMES if name.partition(".")[0] == kind}
    if kind == "UVit2DModel" and type(tree.get("sample_size")) is int:  # counted in codes
        stated |= {"image_size": tree["sample_size"], "downsample_size": 1}
    return stated or None
