"""Opens sets of captioned images by their address."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from maskgil_jax.config import CaptionConfig, ConfigError, require
from maskgil_jax.data.scenes import CANVASES, KINDS, STEP, Scenes
from maskgil_jax.data.sources.caption_files import open_caption_folder, open_caption_lines, open_coco_captions
from maskgil_jax.data.sources.emoji_captions import EmojiCaptions
from maskgil_jax.data.sources.joined_captions import JoinedCaptions
from maskgil_jax.data.sources.tar_shards import TarShards, expand_shards

METADATA = "metadata.jsonl"  # of a folder of images


def open_captions(
    spec: str | os.PathLike,
    *,
    split: str = "train",
    images: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    options: CaptionConfig | None = None,
):
    """Opens a source of captioned images; its records are described in `data.sources.captions`.

    spec: one of
      FILE.jsonl: JSON lines, each with the path or key of an image and its captions;
      FILE.json: a COCO captions file;
      FILE.tar, a folder of .tar files, or a pattern such as shards/{00000..00099}.tar: webdataset shards;
      a folder: images with .txt or .json files of the same name, or with a file metadata.jsonl;
      emoji: the built-in drawings with captions composed of their names, tags, style and group;
      scenes: scenes composed of the built-in drawings, or scenes:COUNT for another number than 100,000, or
      scenes:COUNT:HEIGHTxWIDTH for one size; a last @STEP lets their places differ by multiples of STEP pixels, a last
      @fixed gives one layout to all scenes of a canvas, number and relation;
      pairs:COUNT, with the same additions: those scenes alone that show two different things;
      tfds:NAME: a data set of TensorFlow Datasets with a feature caption or captions;
      several of these, separated by commas, as one source: "emoji*10,scenes:60000" has the drawings ten times and the
      scenes once.
    split: of the built-in drawings, of scenes and of TFDS. data_dir: of TFDS.
    images: folder that the names in a .jsonl or .json file are relative to; None: the file's.
    Raises a ValueError that says what was looked for and not found.
    """
    text, options = os.fspath(spec), options or CaptionConfig()
    require(bool(text), "data.path: is empty; give emoji, scenes, a folder, a .jsonl, .json or .tar file, or tfds:NAME")
    if "," in text and not Path(text).exists() and "{" not in text:
        given = [re.fullmatch(r"\s*(.+?)(?:\*(\d+))?\s*", part) for part in text.split(",")]
        require(all(given), f"data.path: {text}: expected sources separated by commas, as in emoji*10,scenes:60000")
        shared: Any = dict(split=split, images=images, data_dir=data_dir, options=options)
        parts = [(open_captions(part[1], **shared), int(part[2] or 1)) for part in given if part]
        return JoinedCaptions(*zip(*parts))
    if text == "emoji":
        return EmojiCaptions(split)
    if text == "scenes":
        return Scenes(split=split)
    if text.startswith(("scenes:", "pairs:")):
        found = re.fullmatch(r"(scenes|pairs):(\d+)(?::(\d+)x(\d+))?(?:@(\d+|fixed))?", text)
        if found is None:
            raise ConfigError(
                f"data.path: {text}: expected scenes:COUNT or scenes:COUNT:HEIGHTxWIDTH, as in scenes:50000:64x96, "
                "and @STEP or @fixed after either, as in scenes:50000@fixed; pairs in place of scenes has the pairs alone"
            )
        name, count, *size, places = found.groups()
        kinds = ("pair",) if name == "pairs" else tuple(KINDS)
        canvases = CANVASES if size[0] is None else (tuple(map(int, size)),)
        layout: dict[str, Any] = {"layout": "fixed"} if places == "fixed" else {"step": int(places or STEP)}
        return Scenes(int(count), split, canvases=canvases, kinds=kinds, **layout)
    if text.startswith("tfds:"):
        from maskgil_jax.data.sources.tfds_captions import PreparedCaptions

        return PreparedCaptions(text[len("tfds:") :], split, data_dir, options)
    if text.endswith(".jsonl"):
        return open_caption_lines(text, images, options)
    if text.endswith(".json"):
        return open_coco_captions(text, images, options)
    folder = Path(text)
    if text.endswith(".tar") or next(folder.glob("*.tar"), None) is not None:
        return TarShards(expand_shards(text), options)
    if (folder / METADATA).is_file():
        return open_caption_lines(folder / METADATA, images, options)
    return open_caption_folder(folder, options)
