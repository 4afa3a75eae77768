"""Pipeline: labels in, images out. The object that users hold; `load` makes one from a weights folder."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.checkpoints.weights import Weights, extra, load_weights, save_weights
from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, decode_preset, from_dict, require
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.data.images import to_uint8, to_unit
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.decoding.hybrid import decode_hybrid
from maskgil_jax.decoding.masked import decode
from maskgil_jax.decoding.token_sampling import batch_requests
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.pipelines import editing
from maskgil_jax.runtime.mesh import batch_sharding, make_mesh, place, replicated
from maskgil_jax.tokenizers.images import to_pixels


@jax.jit
def reconstruct(tokenizer, images_bhwc):
    """uint8 images through the tokenizer and back, uint8."""
    return to_uint8(tokenizer.decode(tokenizer.encode(to_unit(images_bhwc))))


def encoder_of(tokenizer) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 images (b, h, w, 3) -> codes (b, rows, columns) on the host; compiled once per batch shape."""
    encode = jax.jit(lambda network, images: network.encode(to_unit(images)))
    return lambda images: jax.device_get(encode(tokenizer, images))


def encode_source(tokenizer: Weights, source, out, *, image_size: int, batch_size: int = 32, **options) -> pathlib.Path:
    """The code store `out` of an image source, under the tokenizer's hash. `options` are those of `encode_dataset`."""
    return encode_dataset(
        encoder_of(tokenizer.build()),
        source,
        out,
        tokenizer_hash=tokenizer.hash,
        grid=(image_size // tokenizer.cfg.downsample,) * 2,
        codebook_size=tokenizer.cfg.codebook_size,
        image_size=image_size,
        batch_size=batch_size,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A generator with its tokenizer.

    `pipeline(labels=["hearts", 3], seed=1)` -> uint8 images (b, height, width, 3). An image depends on the seed, its place in
    the request, its label and the decoding options; not on batch size or device count. cfg: decoding options, a `CausalConfig`
    if the generator is causal. ar: a causal network beside a masked generator, for `ar_ratio`; ar_cfg: its decoding options.
    mesh: the devices that share every batch (`over`); None leaves it to JAX.
    """

    tokenizer: Any
    generator: Any
    class_names: tuple[str, ...]
    cfg: DecodeConfig | CausalConfig
    name: str = ""
    ar: Any = None
    ar_cfg: CausalConfig = dataclasses.field(default_factory=CausalConfig)
    mesh: Any = None

    inpaint = editing.inpaint
    edit_box = editing.edit_box
    vary = editing.vary
    interpolate = editing.interpolate
    outpaint = editing.outpaint
    trajectory = editing.trajectory

    @property
    def masked(self) -> bool:
        """Whether the generator fills in masked tokens, rather than writing one after the other."""
        return isinstance(self.cfg, DecodeConfig)

    def label_ids(self, labels: int | str | Sequence[int | str] | np.ndarray) -> np.ndarray:
        """Class numbers or names -> int32 (b,). Raises a `ConfigError` that says what the names and range are."""
        if isinstance(labels, (int, np.integer, str)):
            labels = [labels]
        ids = []
        for label in labels:
            text = str(label).strip()
            if text in self.class_names:
                ids.append(self.class_names.index(text))
            elif text.lstrip("-").isdigit():
                require(
                    0 <= int(text) < len(self.class_names),
                    f"labels: {text} is out of range; classes are 0..{len(self.class_names) - 1}",
                )
                ids.append(int(text))
            else:
                near = difflib.get_close_matches(text, self.class_names, n=3, cutoff=0.4)
                near += [n for n in self.class_names if text and text.lower() in n.lower() and n not in near][:3]
                raise ConfigError(
                    f"labels: no class is called {text!r}; "
                    + (
                        f"did you mean {', '.join(map(repr, near))}?"
                        if near
                        else f"there are {len(self.class_names)}: --labels list shows them"
                    )
                )
        require(bool(ids), "labels: none given")
        return np.asarray(ids, np.int32)

    def __call__(
        self,
        labels: int | str | Sequence[int | str] | np.ndarray,
        *,
        seed: int = 0,
        key: jax.Array | None = None,
        cfg: DecodeConfig | CausalConfig | str | None = None,
        grid: tuple[int, int] | None = None,
        batch_size: int | None = None,
        ar_ratio: float = 0.0,
        on_step: Callable[[int, jax.Array], Any] | None = None,
    ) -> np.ndarray:
        """Generates one image per label: uint8 (b, height, width, 3).

        key: used instead of `seed`. cfg: default `self.cfg`, the options stored with the weights; or the name of a preset
        (`config.DECODE_PRESETS`). grid: (rows, columns) of codes; default the training canvas. batch_size: images per network
        call; default all at once. ar_ratio: share of the tokens that the causal network `ar` writes before masked decoding
        (0..1; needs `load(path, ar=...)`). on_step: called as `on_step(step, tokens_bl)` after each step of masked decoding, 1
        to `cfg.steps`, of each batch, with the codes so far ([MASK] = `generator.cfg.mask_id`); the images are the same to
        the bit.
        """
        options: dict[str, Any] = dict(
            seed=seed, key=key, cfg=cfg, grid=grid, batch_size=batch_size, ar_ratio=ar_ratio, on_step=on_step
        )
        return np.concatenate(list(self.batches(labels, **options)))

    def batches(
        self,
        labels,
        *,
        seed: int = 0,
        key=None,
        cfg=None,
        grid=None,
        batch_size: int | None = None,
        ar_ratio: float = 0.0,
        on_step=None,
        places=None,
    ) -> Iterator[np.ndarray]:
        """As a call, but yields the images of `batch_size` labels at a time; one batch shape, so one compilation.

        places: the place in the request that each of these labels has, whole numbers; default 0, 1, 2, ... So the images of a
        large request can be made in parts, in any order and on any machine, and be the same.
        """
        ids_b = self.label_ids(labels)
        places_b = np.arange(len(ids_b)) if places is None else np.asarray(places)
        require(places_b.shape == ids_b.shape, f"places: expected one for each of {len(ids_b)} labels, got {places_b.shape}")
        key, size = self.request(len(ids_b), seed, key, batch_size)
        for rows, keys_b, wanted in batch_requests(key, places_b, size):
            watch = on_step and functools.partial(_watch, on_step, wanted)
            label_b, keys_b = self.shared((ids_b[rows], keys_b))
            tokens_bl = self.tokens(label_b, keys_b, cfg=cfg, grid=grid, ar_ratio=ar_ratio, on_step=watch)
            images = to_pixels(self.tokenizer, tokens_bl, tuple(grid or self.generator.cfg.grid))
            yield jax.device_get(images)[:wanted]

    def request(self, count: int, seed: int, key, batch_size: int | None) -> tuple[jax.Array, int]:
        """The key and the batch size of a request for `count` images; several devices get equal shares."""
        require(batch_size is None or batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
        require(isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32, f"seed: must be in 0..2^32-1, got {seed!r}")
        size, devices = min(batch_size or count, count), 1 if self.mesh is None else self.mesh.size
        return jax.random.key(seed) if key is None else key, -(-size // devices) * devices

    def over(self, devices=None) -> Pipeline:
        """The same pipeline on several devices, those of this process by default: each makes its share of every batch."""
        mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        tokenizer, generator, ar = place((self.tokenizer, self.generator, self.ar), replicated(mesh))
        return dataclasses.replace(self, tokenizer=tokenizer, generator=generator, ar=ar, mesh=mesh)

    def shared(self, batch) -> Any:
        """Arrays with a leading batch axis, split over the devices of `over`; as they are without it."""
        return batch if self.mesh is None else place(batch, batch_sharding(self.mesh))

    def tokens(
        self,
        label_b,
        key,
        *,
        cfg: DecodeConfig | CausalConfig | str | None = None,
        grid=None,
        tokens_bl=None,
        ar_ratio: float = 0.0,
        on_step=None,
    ) -> jax.Array:
        """The codes behind the images: int32 (b, rows * columns).

        tokens_bl: given ones, [MASK] where they are to be made; for a causal generator the first ones of each image, (b, n).
        With `ar_ratio` both networks keep them (`decoding.hybrid.decode_hybrid`).
        """
        condition = ClassCondition(jnp.asarray(label_b, jnp.int32))
        law = self.options(cfg)
        if ar_ratio:
            require(self.ar is not None, f"ar_ratio: {ar_ratio} needs a causal network; load the pipeline with ar=WEIGHTS")
            require(on_step is None, "on_step: masked decoding alone is watched, not together with ar_ratio")
        if isinstance(law, CausalConfig):
            require(on_step is None, "on_step: a causal generator is not watched")
            return decode_causal(self.generator, condition, key, law, tokens_bl, grid)
        if ar_ratio:
            return decode_hybrid(self.ar, self.generator, condition, key, self.ar_cfg, law, ar_ratio, grid, tokens_bl)
        return decode(self.generator, condition, key, law, tokens_bl, grid, on_step)

    def options(self, cfg: DecodeConfig | CausalConfig | str | None = None) -> Any:
        """What `cfg` means: a preset's name, options of the generator's kind, or None for the stored ones."""
        cfg = decode_preset(cfg) if isinstance(cfg, str) else cfg or self.cfg
        if not isinstance(cfg, type(self.cfg)):
            raise ConfigError(f"cfg: this generator samples with a {type(self.cfg).__name__}, got a {type(cfg).__name__}")
        return cfg


def _watch(on_step, wanted: int, step: int, tokens_bl) -> None:
    """Passes on what was asked for, without the images that only fill up the batch."""
    on_step(step, tokens_bl[:wanted])


def pack(path, out) -> None:
    """Writes the pipeline folder `path` to `out` in half precision, with the hash of the rounded tokenizer: to be shared."""
    load(path)  # refuses what does not belong together
    tokenizer, generator = load_weights(path, "tokenizer"), load_weights(path, "generator")
    save_weights(f"{out}/tokenizer", tokenizer.cfg, tokenizer.params, about=extra(tokenizer.about), dtype="float16")
    about = {**extra(generator.about), "tokenizer_hash": load_weights(out, "tokenizer").hash}
    save_weights(f"{out}/generator", generator.cfg, generator.params, about=about, dtype="float16")


def load(path, ar=None, *, rope_scaling: str | None = None) -> Pipeline:
    """Loads a pipeline folder (`tokenizer/` and `generator/`), by local path, shipped name ("demo") or "hf://owner/repo".

    ar: pipeline folder or weights folder of a causal network trained on the same tokenizer and classes, for hybrid decoding.
    rope_scaling: how the generator, and `ar` with it, treats canvases larger than its training one, "none", "interpolate" or
    "ntk" (`models.rope.angles_1d`); default what the folder says.

    Raises a `ValueError` naming the file or the two tokenizer hashes if something is missing or does not belong together.
    """
    tokenizer, generator = load_weights(path, "tokenizer"), load_weights(path, "generator")
    for weights, part, attribute in ((tokenizer, "tokenizer", "downsample"), (generator, "generator", "num_classes")):
        if not hasattr(weights.cfg, attribute):
            raise ConfigError(f"{path}: holds no {part}; expected sub-folders tokenizer/ and generator/")
    _check_tokenizer(path, generator, tokenizer)
    generator = _scaled(path, generator, rope_scaling)
    names, cfg = _class_names(generator), _decoding(generator)
    if ar is None:
        return Pipeline(tokenizer.build(), generator.build(), names, cfg, str(path))
    causal = load_weights(ar, "generator")
    if not getattr(causal.cfg, "causal", False):
        raise ConfigError(f"{ar}: its generator is not causal; hybrid decoding needs one trained on the next token")
    if isinstance(cfg, CausalConfig):
        raise ConfigError(f"{path}: its generator is causal; hybrid decoding fills the rest with a masked one")
    _check_tokenizer(ar, causal, tokenizer, str(path))
    if _class_names(causal) != names:
        raise ConfigError(f"{ar}: was trained on other classes than {path}; both networks must know the same ones")
    ar_cfg, causal = _decoding(causal), _scaled(ar, causal, rope_scaling)
    return Pipeline(tokenizer.build(), generator.build(), names, cfg, str(path), causal.build(), ar_cfg)


def _scaled(path, generator: Weights, rope_scaling: str | None) -> Weights:
    """The generator of `path` with another `rope_scaling`, if any is given."""
    if rope_scaling is None:
        return generator
    require(
        hasattr(generator.cfg, "rope_scaling"),
        f"rope_scaling: {path} holds a generator with learned positions, for its {generator.cfg.grid} canvas only",
    )
    return dataclasses.replace(generator, cfg=dataclasses.replace(generator.cfg, rope_scaling=rope_scaling))


def _check_tokenizer(path, generator: Weights, tokenizer: Weights, holder: str = "this folder") -> None:
    """Refuses the generator of `path` if its codes are not those of this tokenizer, which lies in `holder`."""
    if generator.cfg.codebook_size != tokenizer.cfg.codebook_size:
        raise ConfigError(
            f"{path}: the generator has {generator.cfg.codebook_size} codes, the tokenizer {tokenizer.cfg.codebook_size}"
        )
    trained_with = generator.about.get("tokenizer_hash")
    if trained_with and trained_with != tokenizer.hash:
        raise ConfigError(f"{path}: the generator was trained with tokenizer {trained_with}, {holder} has {tokenizer.hash}")


def _class_names(generator: Weights) -> tuple[str, ...]:
    return tuple(generator.about.get("class_names") or map(str, range(generator.cfg.num_classes)))


def _decoding(generator: Weights) -> Any:
    """The decoding options stored with a generator, of the kind its network needs."""
    kind = CausalConfig if getattr(generator.cfg, "causal", False) else DecodeConfig
    return from_dict(kind, generator.about.get("decode", {}), f"{generator.path}/config.json: decode")
