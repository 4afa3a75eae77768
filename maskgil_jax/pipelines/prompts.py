"""Requests for images by text: a prompt with its size and seed, and files of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.pipelines.canvas import on_canvas
from maskgil_jax.runtime.rng import keys_for_indices, keys_of_seeds


@dataclasses.dataclass(frozen=True)
class PromptRequest:
    """One image asked for by text.

    negative_prompt: None is no text. height, width: pixels; None is the training size. seed: None is the job's seed
    with the index of the image; with a seed of its own, an image is the first of `pipeline(prompts=prompt, seed=seed)`.
    """

    prompt: str
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    seed: int | None = None

    def __post_init__(self):
        require(isinstance(self.prompt, str), f"prompt: expected text, got {self.prompt!r:.40}")
        negative = self.negative_prompt
        require(negative is None or isinstance(negative, str), f"negative_prompt: expected text, got {negative!r:.40}")
        for name in ("height", "width", "seed"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(value is None or whole, f"{name}: expected a whole number, got {value!r:.40}")
        seed = self.seed
        require(seed is None or 0 <= seed < 2**32, f"seed: must be in 0..2^32-1, got {seed}")

    def plain(self) -> dict[str, Any]:
        """What is not None, for a manifest."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


FIELDS = tuple(field.name for field in dataclasses.fields(PromptRequest))


def read_prompts(path: str | os.PathLike) -> list[PromptRequest]:
    """The requests of a file: .txt, one prompt a line, or .jsonl, one object a line with the fields of `PromptRequest`.

    Empty lines are left out. Raises: ConfigError, one line that names the file and the line.
    """
    path = Path(path)
    require(path.suffix in (".txt", ".jsonl"), f"{path}: expected a .txt file, a prompt a line, or .jsonl, an object a line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file of prompts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable UTF-8 file ({error})") from None
    read = _request_of_json if path.suffix == ".jsonl" else PromptRequest
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(read(line.strip()))
        except ConfigError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
    require(bool(found), f"{path}: holds no prompt")
    return found


def _request_of_json(line: str) -> PromptRequest:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({error})") from None
    if isinstance(values, str):
        return PromptRequest(values)
    require(isinstance(values, dict), f"expected an object with {', '.join(FIELDS)}, found a {type(values).__name__}")
    unknown = next((name for name in values if name not in FIELDS), None)
    require(unknown is None, f"{unknown!r} is not one of {', '.join(FIELDS)}")
    require("prompt" in values, "prompt is missing")
    return PromptRequest(**values)


def as_requests(prompts: str | Sequence[str | PromptRequest]) -> list[PromptRequest]:
    """Texts and requests -> requests. Raises a `ConfigError` if there is none."""
    prompts = [prompts] if isinstance(prompts, str | PromptRequest) else list(prompts)
    require(bool(prompts), "prompts: none given")
    return [prompt if isinstance(prompt, PromptRequest) else PromptRequest(prompt) for prompt in prompts]


def draw_prompts(
    pipeline: Any, requests: Sequence[PromptRequest], indices: np.ndarray, *, seed: int, batch_size: int, ar_ratio: float = 0.0
) -> Iterator[np.ndarray]:
    """Yields the images of the requests with these indices in the whole list, in batches of one size in pixels.

    Consecutive requests of the same size are drawn together, so requests should be sorted by size (`size_order`).
    """

    def kind(i: int) -> tuple:
        request = requests[i]
        return pipeline.grid_of(request.height, request.width), request.negative_prompt is None

    for (grid, plain), group in itertools.groupby(map(int, indices), key=kind):
        rows = list(group)
        for start in range(0, len(rows), batch_size):  # a batch of texts at a time: features are large
            some = rows[start : start + batch_size]
            negative = None if plain else [requests[i].negative_prompt for i in some]
            prompts = [requests[i].prompt for i in some]
            condition = pipeline.condition(prompts=prompts, negative_prompts=negative, grid=grid, ar_ratio=ar_ratio)
            shared, seeds = keys_for_indices(jax.random.key(seed), np.array(some)), [requests[i].seed for i in some]
            own = keys_of_seeds([s or 0 for s in seeds])
            keys = jnp.where(np.array([s is None for s in seeds]), shared, own)
            # The last batch of a long list has the shape of the others, so that one program draws all.
            padded = len(indices if on_canvas(pipeline, grid, pipeline.cfg, ar_ratio) else rows) > batch_size
            options = dict(grid=grid, batch_size=batch_size, padded=padded, ar_ratio=ar_ratio)
            yield np.concatenate(list(pipeline.batches(condition, key=keys, **options)))


def size_order(pipeline: Any, requests: Sequence[PromptRequest]) -> list[int]:
    """The indices of the requests, those of one size together; refuses sizes that the pipeline cannot draw."""
    sizes = [(pipeline.grid_of(r.height, r.width), r.negative_prompt is None) for r in requests]
    first = {size: i for i, size in reversed(list(enumerate(sizes)))}
    return sorted(range(len(sizes)), key=lambda i: first[sizes[i]])
