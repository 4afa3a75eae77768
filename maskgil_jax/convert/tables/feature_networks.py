"""Tables of the feature networks of image metrics: the names of their tensors in published PyTorch files.

Sources of the names: pytorch-fid's InceptionV3, and LPIPS over torchvision's VGG16 as taming-transformers and LlamaGen
hold it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskgil_jax.config import InceptionConfig, LPIPSConfig
from maskgil_jax.models.lpips import SCALE, SHIFT

from ..engine import CONV, Ignored, Rule, Table, conv, linear, rule
from ..readers.checkpoint import Problem
from ..sizes import Sizes

_STATISTIC = Ignored(r".*\.num_batches_tracked", "a counter of training")


def _conv_norm(path: str, name: str) -> tuple[Rule, ...]:
    """A convolution without bias and its BatchNorm, whose running statistics are parameters here."""
    return (
        rule(f"{path}/kernel", f"{name}.conv.weight", CONV),
        rule(f"{path}/scale", f"{name}.bn.weight"),
        rule(f"{path}/bias", f"{name}.bn.bias"),
        rule(f"{path}/mean", f"{name}.bn.running_mean"),
        rule(f"{path}/var", f"{name}.bn.running_var"),
    )


def inception_table(cfg: InceptionConfig) -> Table:
    """The FID InceptionV3 by torchvision's names."""
    return Table(
        (
            *linear("fc", "fc"),
            *_conv_norm(r"conv_{name:\w+}", "Conv2d_{name}"),
            *_conv_norm(r"mixed_{name:\w+}/{branch:\w+}", "Mixed_{name}.{branch}"),
        ),
        (_STATISTIC,),
    )


def lpips_table(cfg: LPIPSConfig) -> Table:
    """VGG's convolutions are numbered in order, counting the activation after each and the pooling before each
    stage."""
    rules, number = [], 0
    for stage, count in enumerate(cfg.convolutions):
        for i in range(count):
            rules += conv(f"vgg/{stage}/{i}", f"net.slice{stage + 1}.{number}")
            number += 2
        number += 1
    constants = {"shift": SHIFT, "scale": SCALE}
    return Table(
        (*rules, rule("heads/{i}", "lin{i}.model.1.weight", CONV)),
        (
            *(
                Ignored(
                    rf"scaling_layer\.{name}",
                    "constants of the network",
                    written=np.array(values, np.float32).reshape(1, 3, 1, 1),
                    exact=True,
                )
                for name, values in constants.items()
            ),
            Ignored(r"lins\.\d\.model\.1\.weight", "the heads once more, as the lpips package stores them"),
        ),
    )


def lpips_sizes(sizes: Sizes) -> dict[str, Any]:
    """Options of `LPIPSConfig`: as many stages as heads, as many convolutions as a stage has weights."""
    stages = sizes.count(r"lin(\d+)\.model\.")
    convolutions = tuple(sizes.count(rf"net\.slice{i + 1}\.(\d+)\.") for i in range(stages))
    if not stages:
        raise Problem("lin0.model.1.weight: missing; the number of stages is read from the heads lin0, lin1, ...")
    if not all(convolutions):
        raise Problem(f"net.slice{convolutions.index(0) + 1}: missing; a file of the heads alone, without VGG, is not enough")
    channels = tuple(sizes.of(f"lin{i}.model.1.weight", 4)[1] for i in range(stages))
    return {"channels": channels, "convolutions": convolutions}
