"""Emoji scenes: whether images show what their prompts say, by matching the built-in drawings.

Five tasks in the manner of GenEval, which need no weights: single object, two objects, counting, position, style. A
drawing is found by normalised correlation with every drawing of the vocabulary at every position. `score` gives the
share of images that are right; `reference_scores` gives the same for true scenes, which is the upper limit, and for
images of other prompts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import choose, require
from maskgil_jax.data.scene_nouns import NOUNS, STYLES, drawing
from maskgil_jax.data.scenes import RELATIONS, SIDES, Scene, draw_scene, phrases, render, scene_captions

TASKS = {
    "single_object": "Single obj.",
    "two_object": "Two obj.",
    "counting": "Counting",
    "position": "Position",
    "style": "Style",
}
KINDS = {"single_object": ("single",), "two_object": ("pair",), "counting": ("count",), "position": ("pair",)}
POOL = 2  # images are compared at half their resolution
THRESHOLD = 0.6  # of the correlation; see `benchmarks/emoji_scenes.py` for its choice
OVERLAP = 0.15  # share of the smaller square that two detections may have in common
FLAT = 1e-3  # variance of ink that is added to that of a window: noise on white correlates with nothing
BATCH = 8
TEMPLATES = [(noun, style) for noun in NOUNS for style in STYLES]


class Detection(NamedTuple):
    """A drawing found in an image: its upper left corner and side in pixels, and the correlation, at most 1."""

    noun: str
    style: str
    top: int
    left: int
    side: int
    score: float

    @property
    def center(self) -> tuple[float, float]:
        """(row, column) of the middle."""
        return self.top + self.side / 2, self.left + self.side / 2


# --------------------------------------------------------------------------- detection
@functools.cache
def _templates(side: int) -> np.ndarray:
    """All drawings as convolution kernels (s, s, 3, n): ink at half resolution with mean 0 and norm 1."""
    images = np.stack([drawing(noun, style, side) for noun, style in TEMPLATES])
    kernels = np.moveaxis(np.asarray(_ink(images)), 0, -1)
    kernels = kernels - kernels.mean((0, 1, 2), keepdims=True)
    return kernels / np.sqrt((kernels**2).sum((0, 1, 2), keepdims=True))


def _ink(images_bhwc):
    """uint8 images -> how dark they are, float32 0..1, at half resolution."""
    b, h, w, c = images_bhwc.shape
    pooled = images_bhwc.astype(np.float32).reshape(b, h // POOL, POOL, w // POOL, POOL, c).mean((2, 4))
    return 1 - pooled / 255


@functools.partial(jax.jit, static_argnames="side")
def _correlations(images_bhwc: jax.Array, kernels: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """(best correlation, its template) at every position of a window of `side` pixels: (b, rows, columns) each."""
    ink = _ink(images_bhwc)
    window, count = (1, side // POOL, side // POOL, 1), 3 * (side // POOL) ** 2

    def window_sum(x_bhw):
        return jax.lax.reduce_window(x_bhw[..., None], 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID")

    total, squares = window_sum(ink.sum(-1)), window_sum((ink**2).sum(-1))
    variance = jnp.maximum(squares - total**2 / count, 0.0) + FLAT * count
    products = jax.lax.conv_general_dilated(ink, kernels, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    scores = products / jnp.sqrt(variance)
    return scores.max(-1), scores.argmax(-1)


def detect(images_bhwc: np.ndarray, threshold: float = THRESHOLD) -> list[list[Detection]]:
    """The drawings in a batch of uint8 images of one size, the best match first, without overlapping matches."""
    height, width = images_bhwc.shape[1:3]
    require(height % POOL == 0 and width % POOL == 0, f"images: sides must be multiples of {POOL}, got {height} x {width}")
    found: list[list[Detection]] = [[] for _ in images_bhwc]
    for start in range(0, len(images_bhwc), BATCH):
        part = images_bhwc[start : start + BATCH]
        padded = np.concatenate([part, np.full((BATCH - len(part), *part.shape[1:]), 255, np.uint8)])
        for side in SIDES:
            if side > min(height, width):
                continue
            best, number = (np.asarray(x) for x in _correlations(jnp.asarray(padded), jnp.asarray(_templates(side)), side))
            for image, row, column in np.argwhere(best[: len(part)] >= threshold):
                noun, style = TEMPLATES[number[image, row, column]]
                score = float(best[image, row, column])
                found[start + image].append(Detection(noun, style, int(row) * POOL, int(column) * POOL, side, score))
    return [_without_overlaps(matches) for matches in found]


def _without_overlaps(matches: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for match in sorted(matches, key=lambda m: (-m.score, -m.side, m.top, m.left)):
        if all(_common(match, other) <= OVERLAP for other in kept):
            kept.append(match)
    return kept


def _common(a: Detection, b: Detection) -> float:
    """Common area of two squares as a share of the smaller one."""
    down = min(a.top + a.side, b.top + b.side) - max(a.top, b.top)
    across = min(a.left + a.side, b.left + b.side) - max(a.left, b.left)
    return max(down, 0) * max(across, 0) / min(a.side, b.side) ** 2


# --------------------------------------------------------------------------- tasks
@dataclasses.dataclass(frozen=True)
class ScenePrompt:
    """A prompt of a task with the scene that it is true of; the image must have the size of the scene."""

    task: str
    prompt: str
    scene: Scene


def scene_prompts(per_task: int = 100, *, split: str = "test", seed: int = 0) -> list[ScenePrompt]:
    """`per_task` prompts of every task, a pure function of the arguments.

    split: "test" takes held-out combinations and "train" those of training, as in `data.scenes`. Single objects, which
    are never held out, come from the training combinations in either case.
    """
    require(per_task >= 1, f"per_task: must be at least 1, got {per_task}")
    found: dict[str, list[ScenePrompt]] = {task: [] for task in TASKS}
    index = 0
    while any(len(prompts) < per_task for prompts in found.values()):
        scenes = [draw_scene(seed, index, "train"), draw_scene(seed, index, split)]
        for task, prompts in found.items():
            scene = scenes[0 if task == "single_object" else 1]
            if len(prompts) < per_task and scene.kind in KINDS.get(task, (scene.kind,)):
                prompts.append(ScenePrompt(task, _prompt(task, scene), scene))
        index += 1
    return [prompt for prompts in found.values() for prompt in prompts]


def _prompt(task: str, scene: Scene) -> str:
    if task == "style":
        return scene_captions(scene)[-1]
    return phrases(scene)[0 if task == "two_object" else -1]


def is_correct(task: str, scene: Scene, detections: Sequence[Detection]) -> bool:
    """Whether an image with these detections shows what the task asks of the scene.

    single_object, two_object: every noun is found. counting: exactly as many of the noun. position: of the best match
    of either noun, the centres differ in the direction of the relation, and more in it than across. style: every noun
    is found in the style.
    """
    choose("task", task, TASKS)
    best: dict[str, Detection] = {}
    for match in detections:
        best.setdefault(match.noun, match)
    if task == "counting":
        ((noun, count),) = scene.counts.items()
        return sum(match.noun == noun for match in detections) == count
    if task == "style":
        return all(any(m.noun == noun and m.style == scene.style for m in detections) for noun in scene.counts)
    if not all(noun in best for noun in scene.counts):
        return False
    if task != "position":
        return True
    assert scene.relation is not None
    first, second = (np.array(best[noun].center) for noun in scene.counts)
    direction = np.array(RELATIONS[scene.relation][1])
    along = float((second - first) @ direction)
    return along > abs(float((second - first) @ direction[::-1]))


def score(prompts: Sequence[ScenePrompt], images: Sequence[np.ndarray], threshold: float = THRESHOLD) -> dict[str, float]:
    """Share of correct images by task, and "overall", the mean of the tasks.

    images: uint8 (h, w, 3), one for each prompt.
    Raises a ValueError for an image of another size than its prompt asks for.
    """
    require(len(prompts) == len(images) > 0, f"images: {len(images)} for {len(prompts)} prompts; give one for each")
    for i, (prompt, image) in enumerate(zip(prompts, images)):
        expected = prompt.scene.height, prompt.scene.width, 3
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"images[{i}]: {image.dtype} {image.shape}, expected uint8 {expected} for {prompt.prompt!r}")
    marks: dict[str, list[bool]] = {task: [] for task in TASKS}
    for numbers in _by_size(prompts).values():
        for i, matches in zip(numbers, detect(np.stack([images[i] for i in numbers]), threshold)):
            marks[prompts[i].task].append(is_correct(prompts[i].task, prompts[i].scene, matches))
    shares = {task: float(np.mean(values)) for task, values in marks.items() if values}
    return {**shares, "overall": float(np.mean(list(shares.values())))}


def _by_size(prompts: Sequence[ScenePrompt]) -> dict[tuple[int, int], list[int]]:
    """Numbers of the prompts by the size of their images."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault((prompt.scene.height, prompt.scene.width), []).append(i)
    return found


def reference_scores(
    prompts: Sequence[ScenePrompt], transform: Callable[[np.ndarray], np.ndarray] | None = None, threshold: float = THRESHOLD
) -> dict[str, dict[str, float]]:
    """Scores of images that are right and of images that are wrong: how far `score` can be trusted.

    "true scenes": the scene of each prompt, the most that a model can reach. "other scenes": for each prompt the scene
    of the next one of the same task and size, what chance gives. transform: uint8 (b, h, w, 3) -> the same, such as a
    tokenizer's reconstruction; adds "true scenes, transformed".
    """
    true = [render(prompt.scene) for prompt in prompts]
    groups: dict[tuple, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault((prompt.task, prompt.scene.height, prompt.scene.width), []).append(i)
    other = list(true)
    for numbers in groups.values():
        for i, j in zip(numbers, [*numbers[1:], numbers[0]]):
            other[i] = true[j] if j != i else np.full_like(true[i], 255)
    found = {"true scenes": score(prompts, true, threshold), "other scenes": score(prompts, other, threshold)}
    if transform is not None:
        changed = list(true)
        for numbers in _by_size(prompts).values():
            for i, image in zip(numbers, np.asarray(transform(np.stack([true[i] for i in numbers])))):
                changed[i] = image
        found["true scenes, transformed"] = score(prompts, changed, threshold)
    return found


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    """Scores by name of what was scored, as a table."""
    columns = [*(task for task in TASKS if all(task in row for row in rows.values())), "overall"]
    lines = [["", *(TASKS.get(c, "Overall") for c in columns)], ["---"] * (len(columns) + 1)]
    lines += [[name, *(f"{row[c]:.3f}" for c in columns)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
