"""Draws 64 prompts with text weights: 32 that were seen in training on one sheet, 32 unseen combinations on another.

python -m benchmarks.prompt_sheet FOLDER [--weights emoji_text]

FOLDER gets seen.png, unseen.png and prompts.md, which names the prompt of every image, row by row. Seen: 16 captions of
drawings, 16 scenes of training combinations. Unseen: 24 scenes of held-out pairs and numbers, the last 8 of them with a
style; 8 colours that no drawing of the thing has. All images are of seed 0.
"""

import argparse
import pathlib

import numpy as np

import maskgil_jax
from maskgil_jax.data.scenes import Scene, draw_scene, scene_captions
from maskgil_jax.data.sources.emoji_captions import EmojiCaptions
from maskgil_jax.files.images import contact_sheet, save_png

COLOURS = (
    "blue apple",
    "purple dog",
    "green fire engine",
    "red penguin",
    "yellow whale",
    "pink frog",
    "black banana",
    "blue sun",
)
CELL = 128  # pixels; images stand in the middle of their cells
COLUMNS = 8


def scenes(split: str, count: int, seed: int = 1) -> list[Scene]:
    """Scenes of a split in which single objects do not count, as none of them is held out."""
    found = (draw_scene(seed, index, split) for index in range(20 * count))
    return [scene for scene in found if scene.kind != "single"][:count]


def requests() -> dict[str, list[tuple[str, int, int]]]:
    """(prompt, height, width) of both sheets."""
    drawings = EmojiCaptions()
    known = {caption for i in range(len(drawings)) for caption in drawings.captions(i)}
    singles = [(drawings.captions(int(i))[1], 64, 64) for i in np.linspace(0, len(drawings) - 1, 16)]
    seen = [(scene_captions(s)[0], s.height, s.width) for s in scenes("train", 16)]
    held_out = scenes("test", 24)
    unseen = [(scene_captions(s)[0 if i < 16 else -1], s.height, s.width) for i, s in enumerate(held_out)]
    colours = [(f"a {name}", 64, 64) for name in COLOURS]
    clash = known.intersection(prompt for prompt, *_ in colours)
    if clash:
        raise SystemExit(f"captions of training drawings: {sorted(clash)}")
    return {"seen": singles + seen, "unseen": unseen + colours}


def sheet(pipeline, asked: list[tuple[str, int, int]]) -> np.ndarray:
    """The images of some requests, each in the middle of a cell."""
    cells = np.full((len(asked), CELL, CELL, 3), 238, np.uint8)
    for size in sorted({(height, width) for _, height, width in asked}):
        numbers = [i for i, request in enumerate(asked) if request[1:] == size]
        images = pipeline(prompts=[asked[i][0] for i in numbers], height=size[0], width=size[1], seed=0)
        top, left = (CELL - size[0]) // 2, (CELL - size[1]) // 2
        cells[numbers, top : top + size[0], left : left + size[1]] = images
    return contact_sheet(cells, columns=COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--weights", default="emoji_text")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    pipeline, lines = maskgil_jax.load(args.weights), []
    for name, asked in requests().items():
        save_png(args.folder / f"{name}.png", sheet(pipeline, asked))
        lines.append(f"{name}:\n")
        for start in range(0, len(asked), COLUMNS):
            lines.append(f"{start // COLUMNS + 1}. " + "; ".join(prompt for prompt, *_ in asked[start : start + COLUMNS]))
        lines.append("")
    (args.folder / "prompts.md").write_text("\n".join(lines))
    print(args.folder)


if __name__ == "__main__":
    main()
