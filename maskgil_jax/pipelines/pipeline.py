"""Pipeline: labels or prompts in, images out. The object that users hold; `load` makes one from a weights folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from maskgil_jax.checkpoints.weights import extra
from maskgil_jax.conditioning import ClassConditioner, Conditioner, conditioner_of
from maskgil_jax.conditioning.speech import Transcript
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
from maskgil_jax.files.images import to_pil
from maskgil_jax.models.condition import HybridCondition
from maskgil_jax.pipelines import canvas, editing, encoding, requests, saving, streaming
from maskgil_jax.pipelines.decoding_options import changed
from maskgil_jax.pipelines.draw import draw
from maskgil_jax.pipelines.parts import (
    ar_conditioner_of,
    built,
    cached,
    check_tokenizer,
    decoding_of,
    in_dtype,
    load_generator_part,
    open_parts,
    scaled,
)
from maskgil_jax.pipelines.requests import request_of
from maskgil_jax.runtime.mesh import batch_sharding, make_mesh, place, replicated
from maskgil_jax.runtime.platform import set_compile_cache


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Pipeline:
    """A generator with its tokenizer and its conditioner.

    `pipeline(["hearts", 3], seed=1)` -> uint8 images (b, height, width, 3). An image depends on the seed, its index in
    the request, its label and the decoding options; not on batch size or device count.

    conditioner: makes conditions from labels or prompts; class names (a sequence of text) stand for a
    `ClassConditioner`.
    cfg: decoding options, a `CausalConfig` if the generator is causal. ar: a causal network beside a masked generator,
    for `ar_ratio`; ar_cfg: its decoding options; ar_conditioner: makes its conditions, if it reads prompts in another
    way.
    mesh: the devices that share every batch (`over`); None leaves it to JAX. metadata: of "tokenizer" and "generator",
    the entries of their config.json that describe no network; kept by `save`.

    `canvas`: (rows, columns) of the canvas on which images of all sizes that fit are drawn by one program, if the
    generator was trained on images of several sizes (`pipelines.canvas`); else None, and each size has a program of its
    own.
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
    metadata: dict = dataclasses.field(default_factory=dict, compare=False)

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
        metadata: dict | None = None,
        *,
        class_names: Sequence[str] | None = None,
    ):
        given: Any = class_names if conditioner is None else conditioner
        if given is None:
            given = conditioner_of(generator.cfg, {})
        elif isinstance(given, (tuple, list)):
            given = ClassConditioner(tuple(given))
        cfg = cfg or (CausalConfig() if is_causal(generator.cfg) else DecodeConfig())
        options = cfg, name, ar, ar_cfg or CausalConfig(), mesh, ar_conditioner, metadata or {}
        values = (tokenizer, generator, given, *options)
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    inpaint = editing.inpaint
    edit_box = editing.edit_box
    vary = editing.vary
    interpolate = editing.interpolate
    outpaint = editing.outpaint
    trajectory = editing.trajectory
    stream = streaming.stream
    warm_up = streaming.warm_up
    encode = encoding.encode
    decode = encoding.decode
    reconstruct = encoding.reconstruct
    save = saving.save
    push = saving.push
    condition = requests.condition
    with_negative = requests.with_negative
    grid_of = requests.grid_of
    tokens = canvas.tokens
    canvas = property(canvas.canvas_of)

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
        audio: Any = None,
        speech: str = "base",
        language: str | None = None,
        on_transcript: Callable[[int, Transcript], Any] | None = None,
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
        """Generates one image per label, prompt or recording: uint8 (b, height, width, 3).

        labels: class numbers (integers) or names. prompts: texts, for a text-conditional generator. audio: recordings,
        as paths or float samples at 16 kHz (one, or a list), drawn as what Whisper makes of them in English; a
        class-conditional generator draws the nearest class. speech: Whisper's model, a name or a folder. language: code
        of the spoken one; default detected. on_transcript: called as `on_transcript(index, transcript)`.
        negative_prompts: what guidance moves away from, instead of no text: one for all prompts, or one for each.
        height, width: pixels; default the training size. grid: (rows, columns) of codes, instead of height and width.
        seeds: one for each image, or several for one label, instead of `seed`; an image is then the first image of a
        request with its seed alone. key: used instead of `seed`. num_per_label: images of each label, one after the
        other. cfg: default `self.cfg`, the options stored with the weights; or the name of a preset
        (`config.DECODE_PRESETS`). decoding: decoding options that replace those of `cfg` (steps=, guidance=, ...).
        batch_size: images per network call; default 4, or 32 if there are more than 16 images, filled up, so that few
        sizes are compiled (`on_step`: all of them, at most 64). ar_ratio: share of the tokens that the causal network
        `ar` samples before masked decoding (0..1; needs `load(path, ar=...)`). on_step: called as
        `on_step(step, tokens_bl)` after each step of masked decoding, 1 to `cfg.steps`, of each batch, with the codes
        so far ([MASK] = `generator.cfg.mask_id`); it does not change the images. output: "numpy", or "pil" for a list
        of PIL images.
        """
        choose("output", output, ("numpy", "pil"))
        condition, options = request_of(
            self,
            labels,
            prompts,
            negative_prompts,
            height=height,
            width=width,
            grid=grid,
            seed=seed,
            seeds=seeds,
            num_per_label=num_per_label,
            key=key,
            batch_size=batch_size,
            ar_ratio=ar_ratio,
            audio=audio,
            speech=speech,
            language=language,
            on_transcript=on_transcript,
            one_batch=on_step is not None,
        )
        options |= dict(cfg=self.options(cfg, **decoding), ar_ratio=ar_ratio, on_step=on_step)
        images = np.concatenate(list(self.batches(condition, **options)))
        return images if output == "numpy" else to_pil(images)

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

        labels: what the conditioner encodes, or a condition. indices: the index in the request that each of these has;
        default 0, 1, 2, ... So the images of a large request can be made in parts, in any order and on any machine, and
        be the same.
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
        """The same pipeline on several devices, those of this process by default:
        each makes its share of every batch."""
        mesh = mesh or make_mesh(devices=jax.local_devices() if devices is None else devices)
        tokenizer, generator, ar = place((self.tokenizer, self.generator, self.ar), replicated(mesh))
        return dataclasses.replace(self, tokenizer=tokenizer, generator=generator, ar=ar, mesh=mesh)

    def shard(self, batch: Any) -> Any:
        """Arrays with a leading batch axis, split over the devices of `over`; as they are without it."""
        return batch if self.mesh is None else place(batch, batch_sharding(self.mesh))

    def options(self, cfg: DecodeConfig | CausalConfig | str | None = None, **changes: Any) -> Any:
        """Decoding options: `cfg`, the preset of that name, or the stored ones (None),
        with `changes` to single options."""
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
    dtype: str | None = None,
    compile_cache: bool = True,
    **published: Any,
) -> Pipeline:
    """Loads a pipeline folder (`tokenizer/` and `generator/`), by local path, shipped name ("demo")
    or "hf://owner/repo".

    ar: pipeline folder or weights folder of a causal network trained on the same tokenizer and classes, for hybrid
    decoding; of a text-conditional one, the text encoder may be another.
    rope_scaling: how the generator, and `ar` with it, treats canvases larger than its training one, "none",
    "interpolate" or "ntk" (`models.rope.angles_1d`); default what the folder says.
    text_encoder: for a text-conditional generator, the folder (or an encoder) to read prompts with; default what the
    folder says, read at the first prompt. It must be the one of training.
    mesh: devices that share the images (axes data, fsdp) and the weights (fsdp, tensor); networks that it does
    not divide are whole on each. kernels: "int8" quantises a Chameleon's layers as they are read (extra [int8]).

    dtype: "bfloat16" or "float32", of the computation of all networks; in bfloat16 the matrices of the generators are
    kept in it, too, in half the memory. Default what the folder says, usually float32.
    compile_cache: keep compiled programs on disk for later processes (`runtime.platform.set_compile_cache`), as the
    command does; a cache that JAX has already is left as it is.

    published: options of published files. A pipeline folder of diffusers with aMUSEd, and a generator's file with its
    tokenizer's beside it, are converted once into `cache_dir` (default $MASKGIL_CACHE_DIR or ~/.cache/maskgil_jax),
    which, if given, also keeps downloads from the hub, in its folder `hub`. variant: of a diffusers folder's files,
    "fp16". lora: a LoRA file, `lora_scale` (1.0) times whose changes are added to the weights.

    Raises a `ValueError` naming the file or the two tokenizer hashes if something is missing or does not fit together.
    """
    if dtype is not None:
        choose("dtype", dtype, ("float32", "bfloat16"))
    if compile_cache:
        set_compile_cache()
    own = kernels if ar is None else None
    path, tokenizer, generator = open_parts(path, mesh=mesh, kernels=own, **published)
    generator = scaled(path, generator, rope_scaling)
    conditioner, cfg = conditioner_of(generator.cfg, generator.about, text_encoder, generator.path), decoding_of(generator)
    metadata = {"tokenizer": extra(tokenizer.metadata), "generator": extra(generator.metadata)}
    canvas.check_canvas(generator.cfg, metadata["generator"].get("canvas"), f"{generator.path}/config.json")
    first, second = (built(in_dtype(part, dtype), mesh) for part in (tokenizer, generator))
    if ar is None:
        return Pipeline(first, second, conditioner, cfg, str(path), mesh=mesh, metadata=metadata)
    causal = load_generator_part(cached(ar, published.get("cache_dir")), mesh=mesh, kernels=kernels)
    require(is_causal(causal.cfg), f"{ar}: its generator is not causal; hybrid decoding needs one trained on the next token")
    require(isinstance(cfg, DecodeConfig), f"{path}: its generator is causal; hybrid decoding fills the rest with a masked one")
    check_tokenizer(ar, causal, tokenizer, str(path))
    other, ar_cfg = ar_conditioner_of(ar, causal, path, conditioner), decoding_of(causal)
    causal = causal if causal.cfg.condition == "tokens" else scaled(ar, causal, rope_scaling)
    third = built(in_dtype(causal, dtype), mesh)
    return Pipeline(first, second, conditioner, cfg, str(path), third, ar_cfg, mesh, other, metadata)
