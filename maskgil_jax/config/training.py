"""Options of training: the sections of a run file, and the check of a whole one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from .base import ConfigError, Renamed, check_ranges, choose, from_dict, nearest, option, require
from .data import height_width
from .decoding import SCHEDULES, CausalConfig, DecodeConfig

MASKINGS = ("exact", "bernoulli")
CROPS = ("center", "random", "adm_random", "none")
ADVERSARIAL = ("hinge", "vanilla", "non_saturating", "non_saturating_swapped")
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data` section: which images are trained on, and how they are read."""

    path: str = option("", "emoji, a folder with a sub-folder for each class, or tfds:NAME; not read if codes is set")
    split: str = option("train", "split of emoji or tfds:NAME to train on")
    held_out: str = option("", "split that is not trained on, for pictures and figures")
    label: str = option("", "emoji only: what the classes are: subgroup, group or style")
    image_size: int | tuple[int, int] = option(256, "pixels of a side, or (height, width)")
    crop: str = option("center", "how images become square; none: they are so already", choices=CROPS)
    flip: bool = option(False, "mirror half of the images")
    num_workers: int = option(0, "processes that read images; 0: threads of this process", low=0)
    shuffle: bool = option(True, "read each epoch in an order of its own")
    num_epochs: int | None = option(None, "end of the data after so many epochs; unset: repeated without end", low=1)
    drop_remainder: bool = option(True, "leave out the records at the end of the data that do not fill a batch")
    data_dir: str = option("", "tfds only: folder of the prepared data")
    codes: str = option("", "code store made by maskgil encode; empty: images are encoded while training")
    texts: str = option("", "text store of the captions of `codes` (data.text_store), instead of a text_encoder")
    images: str = option("", "folder that the names in a .jsonl or .json file of captions are relative to; empty: the file's")
    buckets: int = option(0, "side of the size buckets that `codes` must have been encoded to; 0: any sizes", low=0)

    def __post_init__(self):
        check_ranges(self)
        height_width(self.image_size, "image_size")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The `objective` section: how examples are made and scored; the defaults are the paper's (2.3, 4.3).

    A causal network is trained on the next token (teacher forcing): every token is a target, so `schedule`, `masking`
    and `unmasked_weight` have no effect. LlamaGen trains it without label smoothing.
    """

    RENAMED: ClassVar = {"law": Renamed("masking")}

    schedule: str = option("arccos", "distribution of the masked share of an image", choices=SCHEDULES)
    masking: str = option(
        "exact", "exact: as many tokens as the share says; bernoulli: each token by itself (published code)", choices=MASKINGS
    )
    label_smoothing: float = option(0.1, "label smoothing of the cross-entropy", low=0.0, high=1.0, open_high=True)
    unmasked_weight: float = option(0.0, "weight of unmasked tokens in the loss; paper: 0, published code: 1", low=0.0)
    class_dropout: float = option(0.1, "share of the examples trained without their class, for guidance", low=0.0, high=1.0)
    accumulate: int = option(1, "parts in which the gradient of a batch is computed, to save memory", low=1)
    loss_chunks: int = option(1, "parts in which an image's logits are computed; 16 or more for a codebook of 2^18", low=1)
    z_loss: float = option(0.0, "weight of the squared log-partition function; 1e-4 where logits drift", low=0.0)

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An `optimizer` section: AdamW as the paper sets it (4.3), or Muon for the matrices of the layers."""

    name: str = option("adamw", "adamw (paper), or muon for the matrices of the layers", choices=("adamw", "muon"))
    learning_rate: float = option(1e-4, "peak learning rate", low=0.0, open_low=True)
    beta1: float = option(0.9, "decay of the first moment", low=0.0, high=1.0, open_high=True)
    beta2: float = option(0.96, "decay of the second moment", low=0.0, high=1.0, open_high=True)
    weight_decay: float = option(1e-5, "decoupled weight decay", low=0.0)
    decay_on: str = option(
        "matrices", "parameters that decay: matrices and tables, or all (published code)", choices=("matrices", "all")
    )
    clip_norm: float = option(1.0, "global norm at which gradients are clipped; 0: never", low=0.0)
    warmup_steps: int = option(0, "steps of linear warm-up", low=0)
    decay: str = option("constant", "learning rate after the warm-up; cosine ends at 0", choices=("constant", "cosine"))
    ema_decay: float = option(0.0, "decay of the averaged weights; 0: none are kept", low=0.0, high=1.0, open_high=True)
    moment_dtype: str = option(
        "float32", "of the first moment; bfloat16 saves 2 bytes a parameter", choices=("float32", "bfloat16")
    )

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The `lora` section of a generator: low-rank factors are trained beside the frozen weights of `init_from`."""

    rank: int = option(0, "rank of the factors; 0: all weights are trained", low=0)
    alpha: float | None = option(
        None, "the change of a weight is alpha / rank times the product; unset: rank", low=0.0, open_low=True
    )
    targets: str = option(r"attn\w*/(q|k|v|o)/kernel$", "regular expression of the paths of the matrices that get factors")

    def __post_init__(self):
        check_ranges(self)
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(f"targets: {self.targets!r} is no regular expression ({error})") from None

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The `mesh` section: how the devices share the work.

    One of data, fsdp and tensor may be -1: all devices left over.
    """

    data: int = option(-1, "devices that each hold all parameters and a part of the batch", low=1, off=-1)
    fsdp: int = option(1, "devices that split the batch and the parameters", low=1, off=-1)
    tensor: int = option(1, "devices that split every layer", low=1, off=-1)
    dcn_data: int = option(1, "slices joined by a data-centre network, which only gradients cross", low=1)

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The `checkpoint` section."""

    every: int = option(1000, "steps between checkpoints", low=1)
    keep: int = option(3, "newest checkpoints that are kept", low=1)
    keep_every: int = option(0, "checkpoints at multiples of this are never deleted; 0: none", low=0)
    keep_best: int = option(0, "checkpoints with the lowest loss that are never deleted", low=0)
    allow_data_change: bool = option(False, "continue although the data options differ from the checkpoint's")

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class SkipConfig:
    """The `guard` section: which updates are skipped, and when training stops."""

    spike: float = option(
        10.0,
        "skip an update whose gradient norm is this many times its running mean; 0: only norms that are not finite",
        low=1.0,
        open_low=True,
        off=0.0,
    )
    warmup: int = option(50, "accepted steps before spikes are looked for", low=0)
    stop_after: int = option(10, "skipped steps in a row that stop the training", low=1)
    loss_alarm: float = option(6.0, "log a loss this many standard deviations above its running mean; 0: never", low=0.0)
    watchdog_seconds: float = option(300.0, "stop when no step ends for so long; 0: never", low=0.0)
    watchdog_factor: float = option(10.0, "the same in median step times; the longer of the two counts", low=0.0)

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The `evaluate` section: figures of samples while training."""

    every: int = option(0, "steps between evaluations; 0: never", low=0)
    count: int = option(5_000, "samples", low=2)
    features: str = option("weights/inception", "weights folder of the feature network")
    reference: str = option("", "ADM .npz, stats file or images that samples are compared with")
    split: str = option("validation", "split of the reference, if it is a data set")
    best: str = option("fid", "figure by which the weights in best/ are chosen", choices=("fid", "agreement"))
    batch_size: int = option(64, "samples drawn together", low=1)
    seed: int = option(0, "seed of the samples", low=0, high=MAX_SEED)

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class VQLossConfig:
    """The `loss` section of a tokenizer; a weight of 0 leaves its term out.

    In taming's published code `codebook` and `commitment` are exchanged (1.0 on commitment, beta on the codebook).
    """

    l1: float = option(0.0, "weight of the mean absolute error", low=0.0)
    l2: float = option(1.0, "weight of the mean squared error", low=0.0)
    perceptual: float = option(1.0, "weight of the LPIPS distance, if lpips names weights", low=0.0)
    codebook: float = option(1.0, "weight of the codebook loss", low=0.0)
    commitment: float = option(0.25, "weight of the commitment loss", low=0.0)
    entropy: float = option(0.0, "weight of the entropy loss", low=0.0)
    adversarial: float = option(0.5, "weight of the adversarial loss; 0: no discriminator", low=0.0)
    adversarial_kind: str = option("hinge", "adversarial loss of the discriminator", choices=ADVERSARIAL)
    disc_start: int = option(20_000, "first step of the adversarial loss, for tokenizer and discriminator", low=0)
    adaptive: bool = option(True, "scale the adversarial loss by the ratio of gradient norms at the decoder's last layer")

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The `discriminator.net` section of a tokenizer: its PatchGAN."""

    width: int = option(64, "channels of the first convolution", low=1)
    layers: int = option(3, "convolutions that halve the image", low=1)
    norm: str = option("batch", "normalisation", choices=("batch", "group"))

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Augment:
    """The `augment` section of a classifier: random changes that leave a drawing on white what it is."""

    scale: float = option(0.2, "sides change by a factor in exp(-scale)..exp(scale), independently", low=0.0, high=1.0)
    shift: float = option(0.1, "largest shift, as a share of the side", low=0.0, high=1.0)
    flip: float = option(0.5, "probability of being mirrored", low=0.0, high=1.0)
    colour: float = option(0.15, "largest share of each channel added to another", low=0.0, high=1.0)

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """The `text_encoder` section: a frozen encoder of captions, which computes in the train step."""

    path: str = option("", "Hugging Face folder, hf://owner/repo, or minilm; empty: the condition is the class, or data.texts")
    layer: int | None = option(None, "which of the hidden states; -2: before the last layer and norm; unset: the last")
    max_tokens: int = option(128, "positions of a text; longer captions are cut", low=1)
    padding: str = option("right", "side of the padding", choices=("right", "left"))
    template: str = option("", "text put in front of every caption")
    dtype: str = option("float32", "of parameters and products", choices=("float32", "bfloat16"))

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Options at the top of every run file of a training."""

    task: str = option("generator", "what is trained", choices=("generator", "tokenizer", "classifier"))
    seed: int = option(0, "seed of parameters, masks and the order of the data", low=0, high=MAX_SEED)
    batch_size: int = option(256, "images a step, over all devices", low=1)
    total_steps: int = option(1, "steps of the whole training", low=1)
    log_every: int = option(100, "steps between lines of the log", low=1)
    sample_every: int = option(0, "steps between pictures; 0: none", low=0)

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class GeneratorRun(RunConfig):
    """Top of the run file of a generator."""

    tokenizer: str = option("", "weights folder of the tokenizer")
    sample_count: int = option(16, "images of a picture", low=1)
    init_from: str = option("", "weights folder of a generator whose parameters of the same shape are the first ones")


@dataclasses.dataclass(frozen=True)
class TokenizerRun(RunConfig):
    """Top of the run file of a tokenizer."""

    lpips: str = option("", "LPIPS weights folder; empty: no perceptual loss")
    restart_after: int = option(0, "steps without use after which a code is moved to a latent of the batch; 0: never", low=0)
    usage_window: int = option(100, "steps over which codebook usage is counted", low=1)


@dataclasses.dataclass(frozen=True)
class ClassifierRun(RunConfig):
    """Top of the run file of a classifier."""

    label_smoothing: float = option(0.1, "label smoothing of the cross-entropy", low=0.0, high=1.0, open_high=True)


_SHARED = {
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "checkpoint": CheckpointConfig,
    "guard": SkipConfig,
}
# task -> (dataclass of the options at the top, dataclass of each section). `model` and `decode` depend on the network.
SECTIONS: dict[str, tuple[type, dict[str, type]]] = {
    "generator": (
        GeneratorRun,
        {**_SHARED, "text_encoder": TextEncoderConfig, "objective": Objective, "evaluate": EvaluateConfig, "lora": LoraConfig},
    ),
    "tokenizer": (
        TokenizerRun,
        {
            **_SHARED,
            "loss": VQLossConfig,
            "discriminator.net": DiscriminatorConfig,
            "discriminator.optimizer": OptimizerConfig,
        },
    ),
    "classifier": (ClassifierRun, {**_SHARED, "augment": Augment}),
}
_FREE = {"generator": ("model", "decode"), "tokenizer": ("model", "discriminator"), "classifier": ("model",)}


def sections_of(task: str, *, causal: bool = False) -> dict[str, type]:
    """Section path -> dataclass of a task, "" for the options at the top; `decode` included."""
    top, sections = SECTIONS[task]
    decode = {"decode": CausalConfig if causal else DecodeConfig} if task == "generator" else {}
    return {"": top, **sections, **decode}


def check_run_file(options: Mapping[str, Any]) -> None:
    """Raises a `ConfigError` that names the option unless every value of a training's run file is possible.

    options: the run file as nested dicts. Values that depend on data and weights are checked when those are opened.
    """
    task = choose("config.task", options.get("task"), tuple(SECTIONS))
    sections = sections_of(task, causal=bool((options.get("model") or {}).get("causal")))
    names = {path.partition(".")[0] for path in sections if path} | set(_FREE[task])
    for path, kind in sections.items():
        values: Any = options
        for part in filter(None, path.split(".")):
            values = values.get(part) if isinstance(values, Mapping) else None
        if values is None:
            continue
        require(isinstance(values, Mapping), f"config.{path}: must be a section of options, got {values!r}")
        if not path:
            values = {name: value for name, value in values.items() if name not in names}
            known = [field.name for field in dataclasses.fields(kind)]
            for name in values:
                if name not in known:
                    raise ConfigError(f"config: a {task} has no option {name!r}{nearest(name, [*known, *names])}")
        from_dict(kind, dict(values), f"config.{path}" if path else "config")
