"""Tables of Google's MaskGIT: the names of its tensors in the published Flax files, and their sizes.

Flax numbers modules of a class in the order of their creation. Its arrays have our layout, except that attention heads
have an axis of their own. Sources of the names: the published code and its parameter totals.
"""

from __future__ import annotations

from typing import Any

from maskgil_jax.config import MaskGITConfig, MaskGITVQConfig

from ..engine import SAME, Layout, Rule, Table, rule
from ..readers.checkpoint import Problem
from ..sizes import Sizes


def _module(path: str, name: str) -> Rule:
    """All arrays of one Flax module, which have the same names here."""
    return rule(path + "/{leaf:kernel|bias|scale|embedding}", name + "/{leaf}")


# ------------------------------------------------------------------------------------------------ tokenizer
def tokenizer_table(cfg: MaskGITVQConfig) -> Table:
    """The decoder's convolutions are numbered in order: the first, one after each upsampling, the last."""
    ours, theirs = "{side:encoder|decoder}/blocks/{n}/", "{side}/ResBlock_{n}/"
    levels = len(cfg.multipliers)
    return Table(
        (
            rule("codebook/embedding", "quantizer/codebook"),
            _module(ours + "norm1", theirs + "GroupNorm_0"),
            _module(ours + "conv1", theirs + "Conv_0"),
            _module(ours + "norm2", theirs + "GroupNorm_1"),
            _module(ours + "conv2", theirs + "Conv_1"),
            _module(ours + "shortcut", theirs + "Conv_2"),
            _module("{side:encoder|decoder}/norm_out", "{side}/GroupNorm_0"),
            _module("{side:encoder|decoder}/conv_in", "{side}/Conv_0"),
            _module("encoder/conv_out", "encoder/Conv_1"),
            *(_module(f"decoder/upsample/{i}", f"decoder/Conv_{i + 1}") for i in range(levels - 1)),
            _module("decoder/conv_out", f"decoder/Conv_{levels}"),
        )
    )


def tokenizer_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `MaskGITVQConfig`: levels from the decoder's convolutions, blocks of each from the residual blocks."""
    channels = sizes.of("encoder/Conv_0/kernel", 4)[3]
    levels = sizes.count(r"decoder/Conv_(\d+)/") - 1
    blocks = sizes.count(r"encoder/ResBlock_(\d+)/")
    if levels < 1 or not blocks or blocks % (levels + 1):
        raise Problem(f"encoder: {blocks} residual blocks are not as many for each of {max(levels, 0)} levels and the middle")
    res_blocks = blocks // (levels + 1)
    widths = [sizes.of(f"encoder/ResBlock_{i * res_blocks}/Conv_0/kernel", 4)[3] for i in range(levels)]
    if any(width % channels for width in widths):
        raise Problem(f"encoder: level widths {widths} are not multiples of its first convolution's {channels} channels")
    codebook_size, codebook_dim = sizes.of("quantizer/codebook", 2)
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "res_blocks": res_blocks,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "image_size": sizes.image_size(MaskGITVQConfig.image_size),
    }


# ------------------------------------------------------------------------------------------------ transformer
def transformer_table(cfg: MaskGITConfig) -> Table:
    """One table for codes, classes and [MASK], in this order, in both networks."""
    block = "TransformerLayer_{layer}/"
    attention = block + "Attention_0/self_attention/"
    return Table(
        (
            _module("tokens", "Embed_0/word_embeddings"),
            _module("positions", "Embed_0/position_embeddings"),
            _module("input_norm", "Embed_0/embeddings_ln"),
            *(
                rule(f"layers/attn/{ours}/{leaf}", f"{attention}{theirs}/{leaf}", Layout(split=(axis, cfg.heads)))
                for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"))
                for leaf, axis in (("kernel", 1), ("bias", 0))
            ),
            rule("layers/attn/o/kernel", attention + "out/kernel", Layout(split=(0, cfg.heads))),
            rule("layers/attn/o/bias", attention + "out/bias", SAME),
            _module("layers/attn_norm", block + "Attention_0/attention_output_ln"),
            _module("layers/mlp/up", block + "Mlp_0/intermediate_output"),
            _module("layers/mlp/down", block + "Mlp_0/layer_output"),
            _module("layers/mlp_norm", block + "Mlp_0/layer_output_ln"),
            _module("last_linear", "MlmLayer_0/mlm_dense"),
            _module("head_norm", "MlmLayer_0/mlm_ln"),
            rule("head_bias", "MlmLayer_0/mlm_bias/bias"),
        )
    )


def transformer_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `MaskGITConfig`. The table does not separate codes from classes: 1000 classes unless given."""
    table, positions = "Embed_0/word_embeddings/embedding", "Embed_0/position_embeddings/embedding"
    rows, width = sizes.of(table, 2)
    codebook_size, num_classes = sizes.joint_table(table, rows, 1)
    return {
        "codebook_size": codebook_size,
        "num_classes": num_classes,
        "grid": sizes.grid_of(positions, sizes.of(positions, 2)[0] - 1),
        "width": width,
        "depth": sizes.count(r"TransformerLayer_(\d+)/"),
        "heads": sizes.of("TransformerLayer_0/Attention_0/self_attention/query/kernel", 3)[1],
        "mlp_width": sizes.of("TransformerLayer_0/Mlp_0/intermediate_output/kernel", 2)[1],
    }
