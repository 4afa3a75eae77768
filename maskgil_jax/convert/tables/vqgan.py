"""Tables of the convolutional VQ tokenizers: the names of their tensors in published PyTorch files, and their sizes.

Sources of the names: LlamaGen's and taming-transformers' published checkpoints. Both hold the same network.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskgil_jax.config import VQConfig

from ..engine import Ignored, Rule, Table, conv, norm, rule
from ..readers.checkpoint import Problem
from ..sizes import Sizes

_SIDE = "{side:encoder|decoder}"
_OUTSIDE = (
    rule("codebook/embedding", "quantize.embedding.weight"),
    *conv("{c:quant_conv|post_quant_conv}", "{c}"),
    *conv(_SIDE + "/{c:conv_in|conv_out}", "{side}.{c}"),
    *norm(_SIDE + "/norm_out", "{side}.norm_out"),
)
_LOSS = Ignored(r"loss\..*", "the training loss (discriminator and LPIPS)")


def _block(path: str, name: str) -> tuple[Rule, ...]:
    """A residual or an attention block, which both consist of norms and convolutions."""
    return (
        *norm(path + "/{part:norm1|norm2|norm}", name + ".{part}"),
        *conv(path + "/{part:conv1|conv2|q|k|v}", name + ".{part}"),
        *conv(path + "/shortcut", name + ".nin_shortcut"),
        *conv(path + "/out", name + ".proj_out"),
    )


def llamagen_table(cfg: VQConfig) -> Table:
    """LlamaGen's names: `conv_blocks.N` are levels in the order of execution, in encoder and decoder."""
    return Table(
        (
            *_OUTSIDE,
            *_block(_SIDE + "/mid/res1", "{side}.mid.0"),
            *_block(_SIDE + "/mid/attn", "{side}.mid.1"),
            *_block(_SIDE + "/mid/res2", "{side}.mid.2"),
            *_block(_SIDE + "/levels/{i}/{kind:res|attn}/{j}", "{side}.conv_blocks.{i}.{kind}.{j}"),
            *conv("encoder/downsample/{i}", "encoder.conv_blocks.{i}.downsample.conv"),
            *conv("decoder/upsample/{i}", "decoder.conv_blocks.{i}.upsample.conv"),
        ),
        (Ignored(r"quantize\.codebook_used", "a statistic of training", written=np.zeros(65536, np.float32)),),
    )


def taming_table(cfg: VQConfig) -> Table:
    """taming's names: `decoder.up.N` counts from the highest resolution, so the last one runs first."""
    levels = len(cfg.multipliers)
    decoder = []
    for i in range(levels):
        up = f"decoder.up.{levels - 1 - i}"
        decoder += _block(f"decoder/levels/{i}/res/{{j}}", up + ".block.{j}")
        decoder += _block(f"decoder/levels/{i}/attn/{{j}}", up + ".attn.{j}")
        decoder += conv(f"decoder/upsample/{i}", up + ".upsample.conv")
    return Table(
        (
            *_OUTSIDE,
            *_block(_SIDE + "/mid/res1", "{side}.mid.block_1"),
            *_block(_SIDE + "/mid/attn", "{side}.mid.attn_1"),
            *_block(_SIDE + "/mid/res2", "{side}.mid.block_2"),
            *_block("encoder/levels/{i}/res/{j}", "encoder.down.{i}.block.{j}"),
            *_block("encoder/levels/{i}/attn/{j}", "encoder.down.{i}.attn.{j}"),
            *conv("encoder/downsample/{i}", "encoder.down.{i}.downsample.conv"),
            *decoder,
        ),
        (_LOSS,),
    )


def chameleon_table(cfg: VQConfig) -> Table:
    """taming's names; the published file holds more than the network, and names of no part of it are left out."""
    outside = r"(?!encoder\.|decoder\.|quantize\.|quant_conv\.|post_quant_conv\.).*"
    return Table(taming_table(cfg).rules, (_LOSS, Ignored(outside, "not part of the tokenizer")))


def llamagen_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `VQConfig` for a file with LlamaGen's names."""
    return _sizes(sizes, "encoder.conv_blocks.{}.res.", "encoder.conv_blocks.{}.attn.")


def taming_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `VQConfig` for a file with taming's names."""
    return _sizes(sizes, "encoder.down.{}.block.", "encoder.down.{}.attn.")


def chameleon_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `VQConfig` for Chameleon's file, which has taming's names and was trained on images of 512 pixels."""
    return _sizes(sizes, "encoder.down.{}.block.", "encoder.down.{}.attn.", image_size=512)


def _sizes(sizes: Sizes, res: str, attn: str, image_size: int = VQConfig.image_size) -> dict[str, Any]:
    channels = sizes.of("encoder.conv_in.weight", 4)[0]
    levels = sizes.count(res.format(r"(\d+)").replace(".", r"\."))
    widths = [sizes.of(res.format(i) + "0.conv1.weight", 4)[0] for i in range(levels)]
    if not widths or any(width % channels for width in widths):
        raise Problem(f"encoder: level widths {widths} are not multiples of its first convolution's {channels} channels")
    codebook_size, codebook_dim = sizes.of("quantize.embedding.weight", 2)
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "res_blocks": sizes.count(res.format(0).replace(".", r"\.") + r"(\d+)\."),
        "attention_levels": tuple(i - levels for i in range(levels) if sizes.has(attn.format(i).replace(".", r"\."))),
        "latent_dim": sizes.of("encoder.conv_out.weight", 4)[0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "image_size": sizes.image_size(image_size),
    }
