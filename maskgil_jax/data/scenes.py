"""Scenes composed of the built-in drawings by a small grammar, with captions and the truth about them.

    scene    = one object | pair | count
    pair     = object ("to the left of" | "to the right of" | "above" | "below") object
    count    = ("two" | "three" | "four") objects of one noun
    caption  = scene | "a" style-word "drawing of" scene

Scene `index` is a pure function of (seed, index). All objects of a scene have one style; captions without a style word
fit every style. Objects stand on white in cells that do not overlap. A tenth of the pairs of nouns and of the (number,
noun) combinations is held out, chosen by a hash, so that the split never changes: "train" has none of them, "test" has
only them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection

import numpy as np

from maskgil_jax.config import choose, require
from maskgil_jax.data.scene_nouns import NOUNS, STYLES, drawing, drawings
from maskgil_jax.data.sources.emoji_captions import STYLE_WORDS
from maskgil_jax.data.sources.english import article, plural

CANVASES = ((64, 64), (64, 96), (96, 64), (64, 128), (128, 64))  # (height, width)
SIDES = (64, 48, 32)  # of the drawings
STEP = 2  # pixels: the places of the drawings differ by multiples of it
LAYOUTS = ("random", "fixed")
FIXED_SIDES = (64, 32)  # of the drawings in the fixed layout: fewer sizes are learned sooner
ALIGNMENT = 16  # pixels: drawings of the fixed layout stand at multiples of it, on whole patches of 2 x 2 codes
SPLITS = ("train", "test", "all")
HELD_OUT = 0.1  # fraction of the combinations
KINDS = {"single": 0.3, "pair": 0.4, "count": 0.3}  # shares of the scenes before combinations are held out
NUMBERS = {2: "two", 3: "three", 4: "four"}
# Relation -> (the same relation seen from the other object, (rows, columns) from the first object to the second).
RELATIONS = {
    "to the left of": ("to the right of", (0, 1)),
    "to the right of": ("to the left of", (0, -1)),
    "above": ("below", (1, 0)),
    "below": ("above", (-1, 0)),
}


@dataclasses.dataclass(frozen=True)
class PlacedObject:
    """A drawing of `side` x `side` pixels whose upper left corner is at (top, left). code: of the emoji."""

    noun: str
    code: str
    top: int
    left: int
    side: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in an image: the truth about it. relation: of the first object of a pair to the second."""

    kind: str
    height: int
    width: int
    style: str
    objects: tuple[PlacedObject, ...]
    relation: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of objects of each noun."""
        nouns = [thing.noun for thing in self.objects]
        return {noun: nouns.count(noun) for noun in nouns}

    def truth(self) -> dict:
        """All fields and the counts as plain values for JSON."""
        return {**dataclasses.asdict(self), "objects": [dataclasses.asdict(o) for o in self.objects], "counts": self.counts}


def draw_scene(
    seed: int,
    index: int,
    split: str = "train",
    canvases=CANVASES,
    step: int = STEP,
    layout: str = "random",
    kinds: Collection[str] = tuple(KINDS),
) -> Scene:
    """Scene `index` of the stream `seed`, a pure function of the arguments.

    step, layout: as for `Scenes`; they change nothing but the places and the sides of the drawings. kinds: as for
    `Scenes`; a scene of another kind is drawn again, as one of the other split is.
    """
    choose("split", split, SPLITS)
    kinds = _checked_kinds(kinds, split)
    rng = np.random.default_rng([seed, index])
    while True:
        scene = _draw(rng, canvases, step, layout)
        if scene.kind in kinds and (split == "all" or held_out(scene) == (split == "test")):
            return scene


def _checked_kinds(kinds: Collection[str], split: str) -> tuple[str, ...]:
    """The kinds in the order of KINDS. Raises a `ConfigError` if the split has no scene of them."""
    chosen = {choose("kinds", kind, KINDS) for kind in kinds}
    require(bool(chosen), f"kinds: is empty; give some of {', '.join(KINDS)}")
    require(
        split != "test" or chosen != {"single"},
        "kinds: only single objects with split 'test', which has none; give another kind or split 'train'",
    )
    return tuple(kind for kind in KINDS if kind in chosen)


def held_out(scene: Scene) -> bool:
    """Whether the combination of the scene belongs to the test split. Single objects never do."""
    if scene.kind == "single":
        return False
    name = "|".join(f"{count} {noun}" for noun, count in sorted(scene.counts.items()))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") < HELD_OUT * 2**64


def _draw(rng: np.random.Generator, canvases, step: int, layout: str) -> Scene:
    height, width = canvases[int(rng.integers(len(canvases)))]
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    style = STYLES[int(rng.integers(len(STYLES)))]
    count = {"single": 1, "pair": 2, "count": int(rng.integers(2, 5))}[kind]
    nouns = [list(NOUNS)[int(n)] for n in rng.choice(len(NOUNS), 2 if kind == "pair" else 1, replace=False)]
    relation = list(RELATIONS)[int(rng.integers(len(RELATIONS)))] if kind == "pair" else None
    side, cells = _cells(rng, height, width, count, relation, step)  # drawn in any layout: the stream stays the same
    if layout == "fixed":
        side, cells = _fixed_cells(height, width, count, relation)
    objects = tuple(
        PlacedObject(noun, drawings()[noun, style][0], top, left, side)
        for noun, (top, left) in zip(nouns * count if kind == "count" else nouns, cells, strict=True)
    )
    return Scene(kind, height, width, style, objects, relation)


def _cells(rng: np.random.Generator, height: int, width: int, count: int, relation: str | None, step: int):
    """(side of the objects, their corners): cells of a grid, shifted as a whole by a multiple of `step` pixels."""
    fitting = []
    for side in SIDES[:2] if count == 1 else SIDES:
        rows, columns = height // side, width // side
        needed = (1, 1) if relation is None else tuple(1 + abs(step) for step in RELATIONS[relation][1])
        if rows * columns >= count and rows >= needed[0] and columns >= needed[1]:
            fitting.append(side)
    side = fitting[int(rng.integers(len(fitting)))]
    rows, columns = height // side, width // side
    if relation is None:
        chosen = sorted(int(n) for n in rng.choice(rows * columns, count, replace=False))
        places = [divmod(n, columns) for n in chosen]
    else:
        row_step, column_step = RELATIONS[relation][1]
        along, across = (rows, columns) if row_step else (columns, rows)
        first, second = sorted(int(n) for n in rng.choice(along, 2, replace=False))
        if row_step + column_step < 0:
            first, second = second, first
        line = int(rng.integers(across))
        places = [(first, line), (second, line)] if row_step else [(line, first), (line, second)]
    top, left = (_shift(rng, size - number * side, step) for size, number in ((height, rows), (width, columns)))
    return side, [(top + row * side, left + column * side) for row, column in places]


def _fixed_cells(height: int, width: int, count: int, relation: str | None):
    """(side, corners) of the one layout of a canvas, number and relation: the largest row, column or square that fits.

    It stands in the middle, at multiples of ALIGNMENT.
    """
    step = RELATIONS[relation][1] if relation else (0, 0)
    shapes = [(1 + abs(step[0]), 1 + abs(step[1]))] if relation else [(1, count), (count, 1), (2, (count + 1) // 2)]
    side, (rows, columns) = next(
        (side, shape) for side in FIXED_SIDES for shape in shapes if shape[0] * side <= height and shape[1] * side <= width
    )
    top, left = ((size - n * side) // 2 // ALIGNMENT * ALIGNMENT for size, n in ((height, rows), (width, columns)))
    places = [(top + row * side, left + column * side) for row in range(rows) for column in range(columns)][:count]
    return side, places[::-1] if sum(step) < 0 else places


def _shift(rng: np.random.Generator, free: int, step: int) -> int:
    """A multiple of `step` from 0 to `free`. One number is drawn whatever the step, so that all else stays as it is."""
    drawn = int(rng.integers(free // STEP + 1))
    return step * (drawn * (free // step + 1) // (free // STEP + 1))


def render(scene: Scene) -> np.ndarray:
    """The image of a scene: uint8 (height, width, 3)."""
    image = np.full((scene.height, scene.width, 3), 255, np.uint8)
    for thing in scene.objects:
        place = image[thing.top : thing.top + thing.side, thing.left : thing.left + thing.side]
        place[:] = drawing(thing.noun, scene.style, thing.side)
    return image


def phrases(scene: Scene) -> tuple[str, ...]:
    """What the scene shows, in words, without its style. The last phrase is the most exact one."""
    nouns = list(scene.counts)
    if scene.kind == "count":
        return (f"{NUMBERS[len(scene.objects)]} {plural(nouns[0])}",)
    a = [f"{article(noun)} {noun}" for noun in nouns]
    if scene.kind == "single":
        return (a[0],)
    assert scene.relation is not None
    other = RELATIONS[scene.relation][0]
    pair = [f"{a[0]} and {a[1]}", f"{a[1]} and {a[0]}", f"{a[1]} {other} {a[0]}", f"{a[0]} {scene.relation} {a[1]}"]
    return tuple(pair)


def scene_captions(scene: Scene) -> tuple[str, ...]:
    """Every phrase, then every phrase with the style word."""
    word = STYLE_WORDS[scene.style]
    plain = phrases(scene)
    return (*plain, *(f"{article(word)} {word} drawing of {phrase}" for phrase in plain))


class Scenes:
    """Random access to `count` scenes; `source[i]` is {"image", "captions", "id", "truth"}. Images differ in size.

    seed: another seed gives other scenes. canvases: the sizes (height, width) to draw from. step: the places of the
    drawings differ by multiples of it, in pixels. With the side of a patch, of 1, 2, 4, 8 or 16 pixels, a drawing has
    the same codes wherever it stands. layout: "random" draws the sides and the places; "fixed" takes the same for all
    scenes of a canvas, number and relation, whatever the step, so that a caption that names style and relation
    determines the image. kinds: of the scenes, some of "single", "pair" and "count".
    """

    def __init__(
        self,
        count: int = 100_000,
        split: str = "train",
        seed: int = 0,
        canvases=CANVASES,
        step: int = STEP,
        layout: str = "random",
        kinds: Collection[str] = tuple(KINDS),
    ):
        require(count >= 1, f"count: must be at least 1, got {count}")
        require(seed >= 0, f"seed: must not be negative, got {seed}")
        choose("split", split, SPLITS)
        choose("layout", layout, LAYOUTS)
        self._kinds = _checked_kinds(kinds, split)
        self._canvases = tuple((int(h), int(w)) for h, w in canvases)
        require(bool(self._canvases), "canvases: is empty; give sizes (height, width)")
        smallest = 2 * min(SIDES)
        require(
            min(min(size) for size in self._canvases) >= smallest,
            f"canvases: sides must be at least {smallest} pixels, got {self._canvases}",
        )
        require(step >= 1, f"step: must be at least 1 pixel, got {step}")
        self._count, self._split, self._seed, self._step, self._layout = count, split, seed, step, layout
        sizes = "" if self._canvases == CANVASES else "/" + ",".join(f"{h}x{w}" for h, w in self._canvases)
        places = "@fixed" if layout == "fixed" else "" if step == STEP else f"@{step}"
        chosen = "" if self._kinds == tuple(KINDS) else "/" + ",".join(self._kinds)
        self.name = f"scenes/{split}/{count}/{seed}{sizes}{places}{chosen}"

    def __len__(self) -> int:
        return self._count

    def scene(self, i: int) -> Scene:
        """The truth about image `i`, without drawing it."""
        if not 0 <= i < self._count:
            raise IndexError(i)
        return draw_scene(self._seed, i, self._split, self._canvases, self._step, self._layout, self._kinds)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image `i`, without drawing it."""
        return scene_captions(self.scene(i))

    def __getitem__(self, i: int) -> dict:
        scene = self.scene(i)
        name = f"{self.name}/{i}"
        return {"image": render(scene), "captions": scene_captions(scene), "id": name, "truth": scene.truth()}
