"""Pipeline: labels or prompts in, images out. The object that users hold; `load` makes one from a weights folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from maskgil_jax.conditioning import ClassConditioner, Conditioner, TokenConditioner, conditioner_of
from maskgil_jax.config import (
    CausalConfig,
    ConfigError,
    DecodeConfig,
    choose,
    decode_preset,
    is_causal,
    renamed,
    require,
)
from maskgil_jax.decoding.generate import generate_tokens
from maskgil_jax.files.images import to_pil
from maskgil_jax.models.condition import GuidedCondition, HybridCondition, repeat, take, without_null
from maskgil_jax.models.condition import batch_size as rows_of
from maskgil_jax.pipelines import editing
from maskgil_jax.pipelines.decoding_options import changed
from maskgil_jax.pipelines.draw import draw
from maskgil_jax.pipelines.parts import (
    ar_conditioner_of,
    built,
    check_tokenizer,
    decoding_of,
    load_generator_part,
    open_parts,
    scaled,
)
from maskgil_jax.pipelines.sizes import grid_of_size
from maskgil_jax.runtime.mesh import batch_sharding, make_mesh, place, replicated
from maskgil_jax.runtime.rng import keys_of_seeds

MAX_BATCH = 64  # images that a call without `batch_size` generates at once


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Pipeline:
    """A generator with its tokenizer and its conditioner.

    `pipeline(["hearts", 3], seed=1)` -> uint8 images (b, height, width, 3). An image depends on the seed, its index in the
    request, its label and the decoding options; not on batch size or device count.

    conditioner: makes conditions from labels or prompts; class names (a sequence of text) stand for a `ClassConditioner`.
    cfg: decoding options, a `CausalConfig` if the generator is causal. ar: a causal network beside a masked generator, for
    `ar_ratio`; ar_cfg: its decoding options; ar_conditioner: makes its conditions, if it reads prompts in another way.
    mesh: the devices that share every batch (`over`); None leaves it to JAX.
    """

    tokenizer: Any
    generator: Any
    conditioner: Conditioner
    cfg: DecodeConfig | CausalConfig
    name: str = ""
    ar: Any = None
    ar_cfg: CausalConfig = dataclasses.field(default_factory=CausalConfig)
    mesh: Any = None
    ar_conditioner: Conditioner | None = None

    def __init__(
        self,
        tokenizer: Any,
        generator: Any,
        conditioner: Conditioner | Sequence[str] | None = None,
        cfg: DecodeConfig | CausalConfig | None = None,
        name: str = "",
        ar: Any = None,
        ar_cfg: CausalConfig | None = None,
        mesh: Any = None,
        ar_conditioner: Conditioner | None = None,
        *,
        class_names: Sequence[str] | None = None,
    ):
        given: Any = class_names if conditioner is None else conditioner
        if given is None:
            given = conditioner_of(generator.cfg, {})
        elif isinstance(given, (tuple, list)):
            given = ClassConditioner(tuple(given))
        cfg = cfg or (CausalConfig() if is_causal(generator.cfg) else DecodeConfig())
        values = (tokenizer, generator, given, cfg, name, ar, ar_cfg or CausalConfig(), mesh, ar_conditioner)
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    inpaint = editing.inpaint
    edit_box = editing.edit_box
    vary = editing.vary
    interpolate = editing.interpolate
    outpaint = editing.outpaint
    trajectory = editing.trajectory

    def __repr__(self) -> str:
        height, width = (side * self.tokenizer.cfg.downsample for side in self.generator.cfg.grid)
        kind = type(self.generator).__name__ + (" (causal)" if isinstance(self.cfg, CausalConfig) else "")
        parts = [self.name or "unnamed", f"{kind}, {self.generator.cfg.condition}-conditional", f"{height} x {width} pixels"]
        return f"Pipeline({'; '.join(parts + (['with a causal network'] if self.ar is not None else []))})"

    @property
    def masked(self) -> bool:
        """Whether the generator fills in masked tokens, rather than sampling one after the other."""
        return isinstance(self.cfg, DecodeConfig)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for a generator that is conditioned on something else."""
        return self.conditioner.class_names if isinstance(self.conditioner, ClassConditioner) else ()

    def label_ids(self, labels: int | str | Sequence[int | str] | np.ndarray) -> np.ndarray:
        """Class numbers or names -> int32 (b,). Raises a `ConfigError` that says what the names and range are."""
        kind = self.generator.cfg.condition
        require(kind == "class", f"labels: this generator is conditioned on {kind}; give prompts")
        return np.asarray(self.conditioner.encode(labels).label_b)

    def __call__(
        self,
        labels: Any = None,
        *,
        prompts: Any = None,
        negative_prompts: Any = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        num_per_label: int = 1,
        key: jax.Array | None = None,
        cfg: DecodeConfig | CausalConfig | str | None = None,
        grid: tuple[int, int] | None = None,
        batch_size: int | None = None,
        ar_ratio: float = 0.0,
        on_step: Callable[[int, jax.Array], Any] | None = None,
        output: str = "numpy",
        **decoding: Any,
    ) -> Any:
        """Generates one image per label or prompt: uint8 (b, height, width, 3).

        labels: class numbers (integers) or names. prompts: texts, for a text-conditional generator. negative_prompts: what
        guidance moves away from, instead of no text: one for all prompts, or one for each. height, width: pixels; default the
        training size. grid: (rows, columns) of codes, instead of height and width. seeds: one for each image, or
        several for one label, instead of `seed`; an image is then the first image of a request with its seed alone. key: used
        instead of `seed`. num_per_label: images of each label, one after the other. cfg: default `self.cfg`, the options
        stored with the weights; or the name of a preset (`config.DECODE_PRESETS`). decoding: decoding options that replace
        those of `cfg` (steps=, guidance=, ...). batch_size: images per network call; default a power of two up to
        `MAX_BATCH`, padded, so that few sizes are compiled. ar_ratio: share of the tokens that the causal network `ar`
        samples before masked decoding (0..1; needs `load(path, ar=...)`). on_step: called as `on_step(step, tokens_bl)` after
        each step of masked decoding, 1 to `cfg.steps`, of each batch, with the codes so far ([MASK] =
        `generator.cfg.mask_id`); it does not change the images. output: "numpy", or "pil" for a list of PIL images.
        """
        choose("output", output, ("numpy", "pil"))
        require(num_per_label >= 1, f"num_per_label: must be at least 1, got {num_per_label}")
        grid = self.grid_of(height, width, grid)
        asked = self.condition(labels, prompts, negative_prompts, grid=grid, ar_ratio=ar_ratio)
        condition = repeat(asked, num_per_label)
        count = rows_of(condition)
        if seeds is not None:
            require(key is None and seed == 0, "seeds: give them, seed or key")
            require(count in (1, len(seeds)), f"seeds: {len(seeds)} seeds for {count} images; give one for each")
            condition, key = take(condition, np.arange(len(seeds)) % count), keys_of_seeds(seeds)
        padded = batch_size is None
        if padded:
            batch_size = min(1 << (rows_of(condition) - 1).bit_length(), MAX_BATCH)
        options: dict[str, Any] = dict(seed=seed, key=key, cfg=self.options(cfg, **decoding), grid=grid, batch_size=batch_size)
        images = np.concatenate(list(self.batches(condition, **options, ar_ratio=ar_ratio, on_step=on_step, padded=padded)))
        return images if output == "numpy" else to_pil(images)

    def condition(
        self,
        labels: Any = None,
        prompts: Any = None,
        negative_prompts: Any = None,
        *,
        grid: tuple[int, int] | None = None,
        ar_ratio: float = 0.0,
    ) -> Any:
        """The condition of labels or of prompts, whichever is given, with that of negative prompts.

        grid: of the images, which some conditions name. ar_ratio: above 0, also the condition of `ar`, if it needs another.
        """
        require((labels is None) != (prompts is None), "labels, prompts: give one of them")
        text = self.generator.cfg.condition != "class"
        require(prompts is None or text, "prompts: this generator is conditioned on a class; give labels")
        asked = labels if prompts is None else prompts
        condition = self._encoded(self.conditioner, asked, negative_prompts, grid)
        if not ar_ratio or self.ar_conditioner is None or dataclasses.is_dataclass(asked):
            return condition
        return HybridCondition(condition, self._encoded(self.ar_conditioner, asked, negative_prompts, grid))

    def _encoded(self, conditioner: Any, asked: Any, negative_prompts: Any, grid: tuple[int, int] | None) -> Any:
        """The condition that `conditioner` makes, for images of this grid (default: the training one)."""
        if isinstance(conditioner, TokenConditioner):
            conditioner = conditioner.for_grid(grid or self.generator.cfg.grid)
        return self.with_negative(conditioner.encode(asked), negative_prompts, conditioner)

    def with_negative(self, condition: Any, negative_prompts: Any = None, conditioner: Any = None) -> Any:
        """The condition with that of negative prompts: one for all rows, or one for each. None: the condition itself.

        conditioner: what made the condition; default the pipeline's.
        """
        if negative_prompts is None:
            return condition
        kind = self.generator.cfg.condition
        require(kind != "class", f"negative_prompts: this generator is conditioned on a {kind}, and takes no text")
        negative = without_null((conditioner or self.conditioner).encode(negative_prompts))
        count = rows_of(condition)
        given = rows_of(negative)
        require(given in (1, count), f"negative_prompts: {given} for {count} prompts; give one, or one for each")
        return GuidedCondition(without_null(condition), take(negative, np.arange(count) % given))

    def grid_of(self, height: int | None, width: int | None, grid: tuple[int, int] | None = None) -> tuple[int, int]:
        """(rows, columns) of codes for a size in pixels, or `grid`; the training grid where nothing is given."""
        return grid_of_size(self.generator.cfg, self.tokenizer.cfg.downsample, height, width, grid)

    @renamed(places="indices")
    def batches(
        self,
        labels: Any,
        *,
        seed: int = 0,
        key: jax.Array | None = None,
        cfg: DecodeConfig | CausalConfig | str | None = None,
        grid: tuple[int, int] | None = None,
        batch_size: int | None = None,
        ar_ratio: float = 0.0,
        on_step: Callable[[int, jax.Array], Any] | None = None,
        indices: np.ndarray | None = None,
        padded: bool = False,
    ) -> Iterator[np.ndarray]:
        """As a call, but yields the images of `batch_size` requests at a time; one batch shape, so one compilation.

        labels: what the conditioner encodes, or a condition. indices: the index in the request that each of these has; default
        0, 1, 2, ... So the images of a large request can be made in parts, in any order and on any machine, and be the same.
        key: one, or one for each request. padded: see `request`.
        """
        condition = labels if isinstance(labels, HybridCondition) else self.conditioner.encode(labels)
        count = len(jax.tree.leaves(condition)[0])
        indices_n = np.arange(count) if indices is None else np.asarray(indices)
        require(indices_n.shape == (count,), f"indices: expected one for each of {count} requests, got {indices_n.shape}")
        key, size = self.request(count, seed, key, batch_size, padded)
        drawn = draw(self, condition, key, indices_n, size=size, cfg=cfg, grid=grid, ar_ratio=ar_ratio, on_step=on_step)
        for images_bhwc, num_valid in drawn:
            yield jax.device_get(images_bhwc)[:num_valid]

    def request(
        self, count: int, seed: int, key: jax.Array | None, batch_size: int | None, padded: bool = False
    ) -> tuple[jax.Array, int]:
        """The key and the batch size of a request for `count` images; the parts of the mesh get equal shares.

        padded: a batch size above `count` is kept, and the batch is filled up.
        """
        require(batch_size is None or batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
        require(isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32, f"seed: must be in 0..2^32-1, got {seed!r}")
        size = batch_size or count
        size = size if padded else min(size, count)
        devices = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return jax.random.key(seed) if key is None else key, -(-size // devices) * devices

    def over(self, devices: Any = None, mesh: Any = None) -> Pipeline:
        """The same pipeline on several devices, those of this process by default: each makes its share of every batch."""
        mesh = mesh or make_mesh(devices=jax.local_devices() if devices is None else devices)
        tokenizer, generator, ar = place((self.tokenizer, self.generator, self.ar), replicated(mesh))
        return dataclasses.replace(self, tokenizer=tokenizer, generator=generator, ar=ar, mesh=mesh)

    def shard(self, batch: Any) -> Any:
        """Arrays with a leading batch axis, split over the devices of `over`; as they are without it."""
        return batch if self.mesh is None else place(batch, batch_sharding(self.mesh))

    def tokens(
        self,
        condition: Any,
        key: jax.Array,
        *,
        cfg: DecodeConfig | CausalConfig | str | None = None,
        grid: tuple[int, int] | None = None,
        tokens_bl: jax.Array | None = None,
        ar_ratio: float = 0.0,
        on_step: Callable[[int, jax.Array], Any] | None = None,
    ) -> jax.Array:
        """The codes behind the images of a condition, or of labels: int32 (b, rows * columns). See `generate_tokens`."""
        if not dataclasses.is_dataclass(condition):
            condition = self.conditioner.encode(condition)
        return generate_tokens(
            self.generator,
            condition,
            key,
            self.options(cfg),
            grid=grid,
            tokens_bl=tokens_bl,
            ar=self.ar,
            ar_cfg=self.ar_cfg,
            ar_ratio=ar_ratio,
            on_step=on_step,
        )

    def options(self, cfg: DecodeConfig | CausalConfig | str | None = None, **changes: Any) -> Any:
        """Decoding options: `cfg`, the preset of that name, or the stored ones (None), with `changes` to single options."""
        cfg = decode_preset(cfg) if isinstance(cfg, str) else cfg or self.cfg
        if not isinstance(cfg, type(self.cfg)):
            raise ConfigError(f"cfg: this generator samples with a {type(self.cfg).__name__}, got a {type(cfg).__name__}")
        return changed(cfg, changes)


def load(
    path,
    ar=None,
    *,
    rope_scaling: str | None = None,
    text_encoder: Any = None,
    mesh: Any = None,
    kernels: str | None = None,
    **published: Any,
) -> Pipeline:
    """Loads a pipeline folder (`tokenizer/` and `generator/`), by local path, shipped name ("demo") or "hf://owner/repo".

    ar: pipeline folder or weights folder of a causal network trained on the same tokenizer and classes, for hybrid decoding;
    of a text-conditional one, the text encoder may be another.
    rope_scaling: how the generator, and `ar` with it, treats canvases larger than its training one, "none", "interpolate" or
    "ntk" (`models.rope.angles_1d`); default what the folder says.
    text_encoder: for a text-conditional generator, the folder (or an encoder) to read prompts with; default what the folder
    says, read at the first prompt. It must be the one of training.
    mesh: devices that share the images (axes data, fsdp) and the weights (fsdp, tensor); networks that it does
    not divide are whole on each. kernels: "int8" quantises a Chameleon's layers as they are read (extra [int8]).

    published: options of published files. A pipeline folder of diffusers with aMUSEd, and a generator's file with its
    tokenizer's beside it, are converted once into `cache_dir` (default $MASKGIL_CACHE_DIR or ~/.cache/maskgil_jax). variant:
    of a diffusers folder's files, "fp16". lora: a LoRA file, `lora_scale` (1.0) times whose changes are added to the weights.

    Raises a `ValueError` naming the file or the two tokenizer hashes if something is missing or does not fit together.
    """
    own = kernels if ar is None else None
    path, tokenizer, generator = open_parts(path, mesh=mesh, kernels=own, **published)
    generator = scaled(path, generator, rope_scaling)
    conditioner, cfg = conditioner_of(generator.cfg, generator.about, text_encoder, generator.path), decoding_of(generator)
    if ar is None:
        return Pipeline(built(tokenizer, mesh), built(generator, mesh), conditioner, cfg, str(path), mesh=mesh)
    causal = load_generator_part(ar, mesh=mesh, kernels=kernels)
    require(is_causal(causal.cfg), f"{ar}: its generator is not causal; hybrid decoding needs one trained on the next token")
    require(isinstance(cfg, DecodeConfig), f"{path}: its generator is causal; hybrid decoding fills the rest with a masked one")
    check_tokenizer(ar, causal, tokenizer, str(path))
    other, ar_cfg = ar_conditioner_of(ar, causal, path, conditioner), decoding_of(causal)
    causal = causal if causal.cfg.condition == "tokens" else scaled(ar, causal, rope_scaling)
    first, second, third = (built(part, mesh) for part in (tokenizer, generator, causal))
    return Pipeline(first, second, conditioner, cfg, str(path), third, ar_cfg, mesh, other)
