"""The training data of a generator: what a run file's `data`, `tokenizer` and `text_encoder` sections open."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.conditioning import ClassConditioner, Conditioner, online_texts, pooled_texts, stored_texts
from maskgil_jax.config import from_dict, height_width, require
from maskgil_jax.config.training import TextEncoderConfig
from maskgil_jax.data.buckets import buckets
from maskgil_jax.data.caption_sets import open_captions
from maskgil_jax.data.code_store import CodeStore, code_batches
from maskgil_jax.data.images import captioned_batches, image_batches, open_images
from maskgil_jax.data.text_store import TextStore
from maskgil_jax.text_encoders.caption_tokens import TOKEN_FIELDS, TokenizeCaption
from maskgil_jax.text_encoders.load import load_text_encoder
from maskgil_jax.text_encoders.pooled_clip import PooledTextEncoder, load_pooled_clip
from maskgil_jax.training.loop import loader_config, with_arrays

EXAMPLES = 64  # captions that previews show


class GeneratorData(NamedTuple):
    """What a training reads.

    batches: start_step -> batches of what the step takes. grid: of the default image size. source: an image source or
    code store, with its identity.
    """

    batches: Callable[..., Iterator[dict]]
    conditioner: Conditioner
    grid: tuple[int, int]
    source: Any


def open_data(config, tokenizer: Weights, mesh: Mesh) -> GeneratorData:
    """Opens the code store or the images of a run file, and its text store or text encoder. Raises a `ConfigError`."""
    data, factor = config.data, tokenizer.cfg.downsample
    size = height, width = height_width(data.image_size, "config.data.image_size")
    require(
        height % factor == 0 and width % factor == 0,
        f"config.data.image_size: {data.image_size} is not a multiple of the tokenizer's downsampling factor {factor}",
    )
    grid = (height // factor, width // factor)
    encoder = open_encoder(config, mesh)
    if data.codes:
        return _codes(config, tokenizer, encoder, grid)
    require(not data.get("texts"), "config.data.texts: needs config.data.codes, a code store of the same images")
    require(
        not data.get("buckets"),
        f"config.data.buckets: images of several sizes are not tokenised in the train step; run maskgil encode --sizes "
        f"{data.get('buckets')} first and set config.data.codes",
    )
    if encoder is not None:
        return _captioned_images(config, encoder, grid, size)
    source = open_images(data.path, split=data.split, label=data.label, size=size, data_dir=data.data_dir or None)
    options = dict(size=size, crop=data.crop, flip=data.flip)
    conditioner = ClassConditioner(tuple(source.class_names))
    batches = functools.partial(image_batches, source, loader_config(config), **options)
    return GeneratorData(with_arrays(batches, ("image", *conditioner.batch_keys)), conditioner, grid, source)


def open_encoder(config, mesh: Mesh | None) -> Any:
    """The frozen text encoder of the `text_encoder` section, its parameters on the mesh; None without a path."""
    options = encoder_options(config)
    if not options["path"]:
        return None
    if config.model.get("family") == "uvit":
        size = height_width(config.data.image_size, "config.data.image_size")
        return load_pooled_clip(options["path"], size, dtype=options["dtype"], mesh=mesh)
    return load_text_encoder(mesh=mesh, **options)


def encoder_options(config) -> dict[str, Any]:
    """The `text_encoder` section of a run file, checked; its path is empty if captions are not encoded in the step."""
    section = config.get("text_encoder")
    options = from_dict(TextEncoderConfig, section.to_dict() if section else {}, "config.text_encoder")
    stored = config.data.get("texts")
    require(
        not (options.path and stored), "config.text_encoder.path: config.data.texts holds features already; give one of them"
    )
    return dataclasses.asdict(options)


def _captioned_images(config, encoder: Any, grid: tuple[int, int], size: tuple[int, int]) -> GeneratorData:
    """Images and captions; the train step tokenises the images and encodes the captions."""
    data = config.data
    source = open_captions(data.path, split=data.split, images=data.get("images") or None, data_dir=data.data_dir or None)
    tokens = TokenizeCaption(encoder.tokenizer, encoder.options.template)
    batches = functools.partial(
        captioned_batches,
        source,
        loader_config(config),
        size=size,
        crop=data.crop,
        flip=data.flip,
        transforms=[tokens],
        fields=TOKEN_FIELDS,
    )
    conditioner = _online(encoder, example_captions(source))
    return GeneratorData(with_arrays(batches, ("image", *conditioner.batch_keys)), conditioner, grid, source)


def _online(encoder: Any, captions: list[str]) -> Conditioner:
    """The conditioner of a training whose step runs the encoder."""
    return pooled_texts(encoder, captions) if isinstance(encoder, PooledTextEncoder) else online_texts(encoder, captions)


def example_captions(source: Any) -> list[str]:
    """One caption each of images that are spread over a source."""
    numbers = np.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).astype(int)
    return [captions[number % len(captions)] for number in numbers.tolist() if (captions := source.captions(number))]


def _codes(config, tokenizer: Weights, encoder: Any, grid: tuple[int, int]) -> GeneratorData:
    """A code store, whose condition is the class, stored features, or what the encoder makes of its captions."""
    data = config.data
    store = CodeStore(data.codes)
    store.check(tokenizer_hash=tokenizer.hash, grid=grid, codebook_size=tokenizer.cfg.codebook_size)
    _check_sizes(config, store, tokenizer.cfg.downsample)
    texts = TextStore(data.texts) if data.get("texts") else None
    conditioner: Conditioner = ClassConditioner(store.class_names) if texts is None else stored_texts(texts)
    batches: Callable[..., Iterator[dict]] = functools.partial(code_batches, store, loader_config(config), texts=texts)
    if encoder is not None:
        require(store.captioned, f"config.text_encoder.path: {store.path} holds no captions; encode the images with --captions")
        conditioner = _online(encoder, example_captions(store))
        batches = _with_tokens(batches, TokenizeCaption(encoder.tokenizer, encoder.options.template))
    elif texts is not None:
        conditioner = stored_texts(texts)
    else:
        require(
            bool(store.class_names),
            f"config.data.codes: the images of {store.path} have no classes; set config.text_encoder.path or config.data.texts",
        )
        conditioner = ClassConditioner(store.class_names)
    arrays = with_arrays(batches, ("codes", *conditioner.batch_keys), optional=("rows", "columns"))
    return GeneratorData(arrays, conditioner, grid, store)


def _check_sizes(config, store: CodeStore, factor: int) -> None:
    """Refuses a store whose sizes are not those of `data.buckets`, or cannot be cut into patches of tokens."""
    side, patch = config.data.get("buckets") or 0, config.model.get("patch") or 1
    if side:
        expected = {(height // factor, width // factor) for height, width in buckets(side)}
        require(
            set(store.grids) == expected,
            f"config.data.buckets: {store.path} holds {len(store.grids)} sizes, which are not the {len(expected)} buckets of "
            f"{side}; run maskgil encode --sizes {side} into another folder",
        )
    for rows, columns in store.grids:
        require(
            rows % patch == 0 and columns % patch == 0,
            f"config.model.patch: {patch} does not divide the {rows}x{columns} codes of images in {store.path}; set it to 1 "
            "or encode other sizes",
        )


def _with_tokens(batches: Callable[..., Iterator[dict]], tokenize: TokenizeCaption) -> Callable[..., Iterator[dict]]:
    """The same batches, with the token ids of their captions."""
    return lambda **options: ({**batch, **tokenize.batch(batch["caption"])} for batch in batches(**options))
