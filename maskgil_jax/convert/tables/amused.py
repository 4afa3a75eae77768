"""Tables of aMUSEd's U-ViT and its VQ tokenizer: the names of their tensors in diffusers' files, and their sizes."""

from __future__ import annotations

from typing import Any

from maskgil_jax.config import UViTConfig, VQConfig

from ..engine import CONV, LINEAR, Layout, Rule, Table, conv, linear, norm, rule
from ..readers.checkpoint import Problem
from ..sizes import HEAD_WIDTH, Sizes

_TRANSPOSED_CONV = Layout((2, 3, 0, 1))  # (in, out, h, w) -> (h, w, in, out)
_LAYER = "transformer_layers.{layer}."
_SIDE = "{side:encoder|decoder}"


def _attention(path: str, name: str) -> tuple[Rule, ...]:
    projections = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return tuple(rule(f"{path}/{ours}/kernel", f"{name}.{theirs}.weight", LINEAR) for ours, theirs in projections.items())


def _weights(path: str, name: str) -> Rule:
    """A norm without bias."""
    return rule(f"{path}/scale", f"{name}.weight")


def uvit_table(cfg: UViTConfig) -> Table:
    """diffusers' `UVit2DModel`; the first linear map of the MLP holds the values, then the gates."""
    stage, res, text = "{stage:down|up}", "{stage}_block.res_blocks.{i}.", "{stage}_block.attention_blocks.{i}."
    return Table(
        (
            rule("tokens/embedding", "embed.embeddings.weight"),
            _weights("input_norm", "embed.layer_norm"),
            rule("input_conv/kernel", "embed.conv.weight", CONV),
            *linear("text", "encoder_proj", bias=False),
            _weights("text_norm", "encoder_proj_layer_norm"),
            *linear("pooled_up", "cond_embed.linear_1", bias=False),
            *linear("pooled_down", "cond_embed.linear_2", bias=False),
            rule(stage + "/res/{i}/depthwise/kernel", res + "depthwise.weight", CONV),
            _weights(stage + "/res/{i}/norm", res + "norm"),
            *linear(stage + "/res/{i}/up", res + "channelwise_linear_1", bias=False),
            rule(stage + "/res/{i}/response_norm/scale", res + "channelwise_norm.gamma"),
            rule(stage + "/res/{i}/response_norm/bias", res + "channelwise_norm.beta"),
            *linear(stage + "/res/{i}/down", res + "channelwise_linear_2", bias=False),
            *linear(stage + "/res/{i}/modulation", res + "cond_embeds_mapper", bias=False),
            *linear(stage + "/text/{i}/text", text + "kv_mapper", bias=False),
            _weights(stage + "/text/{i}/{part:norm1|norm2}", text + "{part}"),
            *_attention(stage + "/text/{i}/{part:attn1|attn2}", text + "{part}"),
            _weights("downsample/norm", "down_block.downsample.norm"),
            rule("downsample/conv/kernel", "down_block.downsample.conv.weight", CONV),
            _weights("upsample/norm", "up_block.upsample.norm"),
            rule("upsample/kernel", "up_block.upsample.conv.weight", _TRANSPOSED_CONV),
            _weights("inner_norm", "project_to_hidden_norm"),
            *linear("inner", "project_to_hidden", bias=False),
            _weights("layers/attn_norm/norm", _LAYER + "norm1.norm"),
            *linear("layers/attn_norm/modulation", _LAYER + "norm1.linear", bias=False),
            _weights("layers/text_norm/norm", _LAYER + "norm2.norm"),
            *linear("layers/text_norm/modulation", _LAYER + "norm2.linear", bias=False),
            _weights("layers/mlp_norm/norm", _LAYER + "norm3.norm"),
            *linear("layers/mlp_norm/modulation", _LAYER + "norm3.linear", bias=False),
            *_attention("layers/attn", _LAYER + "attn1"),
            *_attention("layers/text_attn", _LAYER + "attn2"),
            Rule(("layers/mlp/up/kernel", "layers/mlp/gate/kernel"), _LAYER + "ff.net.0.proj.weight", LINEAR),
            *linear("layers/mlp/down", _LAYER + "ff.net.2", bias=False),
            _weights("outer_norm", "project_from_hidden_norm"),
            *linear("outer", "project_from_hidden", bias=False),
            rule("head_conv/kernel", "mlm_layer.conv1.weight", CONV),
            _weights("head_norm", "mlm_layer.layer_norm"),
            rule("out_conv/kernel", "mlm_layer.conv2.weight", CONV),
        )
    )


def uvit_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `UViTConfig`. The grid and how the pooled condition is divided are as published unless given."""
    vocabulary, channels = sizes.of("embed.embeddings.weight", 2)
    width, text_dim = sizes.of("encoder_proj.weight", 2)
    pooled = sizes.of("cond_embed.linear_1.weight", 2)[1]
    depth, downsample = sizes.count(r"transformer_layers\.(\d+)\."), sizes.has(r"down_block\.downsample\.")
    side = 32 if downsample else 16
    pooled_dim = sizes.given.get("pooled_dim", text_dim)
    if pooled <= pooled_dim or (pooled - pooled_dim) % 10:
        raise Problem(
            f"cond_embed.linear_1.weight: its {pooled} columns are not a pooled text of {pooled_dim} and the cosines and "
            "sines of five numbers: --set pooled_dim=N"
        )
    return {
        "codebook_size": sizes.of("mlm_layer.conv2.weight", 4)[0],
        "vocabulary": vocabulary,
        "grid": sizes.assume("grid", (side, side), "the published size", f"{side}x{side}"),
        "width": width,
        "depth": depth,
        "heads": sizes.heads(width, depth),
        "mlp_width": sizes.of("transformer_layers.0.ff.net.2.weight", 2)[1],
        "channels": channels,
        "block_heads": sizes.assume("block_heads", max(1, channels // HEAD_WIDTH), f"{HEAD_WIDTH} wide as published"),
        "res_blocks": sizes.count(r"down_block\.res_blocks\.(\d+)\."),
        "downsample": downsample,
        "text_tokens": sizes.assume("text_tokens", 77, "the length of CLIP's texts"),
        "text_dim": text_dim,
        "pooled_dim": pooled_dim,
        "micro_dim": (pooled - pooled_dim) // 5,
    }


def vq_table(cfg: VQConfig) -> Table:
    """diffusers' `VQModel`; `up_blocks` count in the order in which they run."""

    def block(path: str, name: str) -> tuple[Rule, ...]:
        return (
            *norm(path + "/{part:norm1|norm2}", name + ".{part}"),
            *conv(path + "/{part:conv1|conv2}", name + ".{part}"),
            *conv(path + "/shortcut", name + ".conv_shortcut"),
        )

    return Table(
        (
            rule("codebook/embedding", "quantize.embedding.weight"),
            *conv("{c:quant_conv|post_quant_conv}", "{c}"),
            *conv(_SIDE + "/{c:conv_in|conv_out}", "{side}.{c}"),
            *norm(_SIDE + "/norm_out", "{side}.conv_norm_out"),
            *block(_SIDE + "/mid/res1", "{side}.mid_block.resnets.0"),
            *block(_SIDE + "/mid/res2", "{side}.mid_block.resnets.1"),
            *block("encoder/levels/{i}/res/{j}", "encoder.down_blocks.{i}.resnets.{j}"),
            *block("decoder/levels/{i}/res/{j}", "decoder.up_blocks.{i}.resnets.{j}"),
            *conv("encoder/downsample/{i}", "encoder.down_blocks.{i}.downsamplers.0.conv"),
            *conv("decoder/upsample/{i}", "decoder.up_blocks.{i}.upsamplers.0.conv"),
        )
    )


def vq_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `VQConfig`; one file serves 256 and 512 pixels, so the image size is 512 unless given."""
    channels, levels = sizes.of("encoder.conv_in.weight", 4)[0], sizes.count(r"encoder\.down_blocks\.(\d+)\.")
    widths = [sizes.of(f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(levels)]
    if not widths or any(width % channels for width in widths):
        raise Problem(f"encoder: level widths {widths} are not multiples of its first convolution's {channels} channels")
    codebook_size, codebook_dim = sizes.of("quantize.embedding.weight", 2)
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "res_blocks": sizes.count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_dim": sizes.of("encoder.conv_out.weight", 4)[0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "norm_groups": sizes.assume("norm_groups", 32, "as published"),
        "image_size": sizes.image_size(512),
    }


# The entries of `families.FAMILIES`, but for titles and names.
LICENCE = "OpenRAIL++-M: use is restricted as its attachment A lists, also of what is made from it"
UVIT: dict[str, Any] = {
    "kind": "generator",
    "licence": LICENCE,
    "container": "bare",
    "options": UViTConfig,
    "fixed": {"micro_values": 5, "norm_eps": 1e-6},
    "settable": ("heads", "block_heads", "grid", "text_tokens", "pooled_dim"),
    "table": uvit_table,
    "sizes": uvit_sizes,
    "decode": {"steps": 12, "schedule": "cosine", "plan": "gamma_canvas", "guidance": 10.0, "choice_temperature": 2.0},
}
VQ: dict[str, Any] = {
    "kind": "tokenizer",
    "licence": LICENCE,
    "container": "bare",
    "options": VQConfig,
    "fixed": {"l2_normalize": False, "attention_levels": (), "middle_attention": False},
    "settable": ("image_size", "norm_groups"),
    "table": vq_table,
    "sizes": vq_sizes,
}
