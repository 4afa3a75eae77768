"""Tables of Open-MAGVIT2's tokenizer: the names of its tensors in the published file, which holds them twice,
and its sizes.

A file holds the weights as trained, and their running average under the same names without dots:
`encoder.conv_in.weight` and `model_ema.encoderconv_inweight`. The original evaluates the average. The codebook of signs
is not stored.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from maskgil_jax.config import MagvitConfig

from ..engine import CONV, Ignored, Rule, Table, conv, linear, norm, rule
from ..readers.checkpoint import Problem
from ..sizes import Sizes

_OTHERS = (
    Ignored(r"(model_ema\.)?loss.*", "the training loss (discriminator and LPIPS)"),
    Ignored(r"model_ema\.(decay|num_updates)", "counters of the running average"),
)


def averaged(name: str) -> str:
    """The name of a tensor's running average."""
    return "model_ema." + name.replace(".", "")


def raw_table(cfg: MagvitConfig) -> Table:
    """The weights as trained.

    `decoder.up.N` and `decoder.adaptive.N` start at the highest resolution; the last runs first.
    """
    rules = _raw_rules(cfg)
    why = "their running average, which --family open-magvit2 takes"
    return Table(rules, (*_OTHERS, *(Ignored(_any_name(average), why) for average in map(_averaged_rule, rules))))


def averaged_table(cfg: MagvitConfig) -> Table:
    """The running average of the weights, under names without dots."""
    rules = _raw_rules(cfg)
    why = "the weights before averaging, which --family open-magvit2-raw takes"
    return Table(tuple(map(_averaged_rule, rules)), (*_OTHERS, *(Ignored(_any_name(raw), why) for raw in rules)))


def _raw_rules(cfg: MagvitConfig) -> tuple[Rule, ...]:
    rules = [
        rule("encoder/conv_in/kernel", "encoder.conv_in.weight", CONV),
        *conv("{side:encoder|decoder}/conv_out", "{side}.conv_out"),
        *conv("decoder/conv_in", "decoder.conv_in"),
        *norm("{side:encoder|decoder}/norm_out", "{side}.norm_out"),
        *_chain("{side:encoder|decoder}/mid", "{side}.mid_block"),
        *_chain("encoder/levels/{i}", "encoder.down.{i}.block"),
        *conv("encoder/downsample/{i}", "encoder.down.{i}.downsample"),
    ]
    for i in range(len(cfg.multipliers)):
        theirs = len(cfg.multipliers) - 1 - i
        rules += _chain(f"decoder/levels/{i}", f"decoder.up.{theirs}.block")
        rules += conv(f"decoder/upsample/{i}", f"decoder.up.{theirs}.upsample.conv1")
        rules += linear(f"decoder/adaptive/{i}/{{part:gamma|beta}}", f"decoder.adaptive.{theirs}.{{part}}")
    return tuple(rules)


def _chain(path: str, name: str) -> tuple[Rule, ...]:
    """Residual blocks, whose convolutions have no bias."""
    return (
        *norm(path + "/res/{j}/{part:norm1|norm2}", name + ".{j}.{part}"),
        rule(path + "/res/{j}/{part:conv1|conv2}/kernel", name + ".{j}.{part}.weight", CONV),
        rule(path + "/res/{j}/shortcut/kernel", name + ".{j}.nin_shortcut.weight", CONV),
    )


def _averaged_rule(raw: Rule) -> Rule:
    return dataclasses.replace(raw, name=averaged(raw.name))


def _any_name(rule: Rule) -> str:
    """Regular expression of all names that a rule can give. The alternatives of a name are written in its path."""
    words = dict(re.findall(r"\{(\w+)(?::([^}]*))?\}", rule.paths[0]))
    return re.sub(r"\\\{(\w+)\\\}", lambda match: f"(?:{words[match[1]] or '[0-9]{1,3}'})", re.escape(rule.name))


def raw_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `MagvitConfig`, from the weights as trained."""
    return _sizes(sizes, lambda name: name)


def averaged_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `MagvitConfig`, from the running average."""
    return _sizes(sizes, averaged)


def _sizes(sizes: Sizes, spelled) -> dict[str, Any]:
    def count(template: str) -> int:
        return sizes.count(re.escape(spelled(template)).replace("N", "([0-9]+)"))

    channels = sizes.of(spelled("encoder.conv_in.weight"), 4)[0]
    levels = count("encoder.down.N.block.0.conv1.weight")
    widths = [sizes.of(spelled(f"encoder.down.{i}.block.0.conv1.weight"), 4)[0] for i in range(levels)]
    if not widths or any(width % channels for width in widths):
        raise Problem(f"encoder: level widths {widths} are not multiples of its first convolution's {channels} channels")
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "res_blocks": count("encoder.down.0.block.N.conv1.weight"),
        "bits": sizes.of(spelled("encoder.conv_out.weight"), 4)[0],
        "image_size": sizes.image_size(16 * 2 ** (levels - 1)),  # 16 x 16 codes an image, as published
    }
