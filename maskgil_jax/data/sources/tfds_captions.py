"""Captions of a data set prepared by TensorFlow Datasets (coco_captions, flic, ...), read without TensorFlow."""

from __future__ import annotations

import os

from maskgil_jax.config import CaptionConfig
from maskgil_jax.data.sources.captions import LeftOut, ReplacingSource, caption_values, clean_captions
from maskgil_jax.data.sources.tfds import open_prepared, record_name, rgb_image


class PreparedCaptions(ReplacingSource):
    """Random access to images and captions of one split of a TFDS data set prepared as ArrayRecord.

    name, split, data_dir: as in `PreparedDataset`. Captions are read from the features in `options.fields`: texts,
    sequences of texts, or sequences of {"text": ...}. A record without a usable caption is replaced by the next one.
    Raises a ValueError if the data set is unknown, not prepared as ArrayRecord or has no such split, image or caption.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str | os.PathLike | None,
        options: CaptionConfig,
    ):
        super().__init__()
        self._records, info = open_prepared(name, split, data_dir, {"image"})
        if not any(field in info.features for field in options.fields):
            raise ValueError(
                f"tfds:{name}: needs a feature {' or '.join(options.fields)}, has {', '.join(info.features)}; "
                "name the feature in CaptionConfig.fields"
            )
        self.name = f"tfds/{info.full_name}/{split}"
        self._split, self._options = split, options

    def __len__(self) -> int:
        return len(self._records)

    def _record(self, i: int) -> dict:
        record, left_out = self._records[i], LeftOut()
        name = record_name(record, f"{self._split}/{i}")
        captions = clean_captions(caption_values(record, self._options.fields), name, self._options, left_out)
        if not captions:
            raise ValueError(f"{self.name}: {name} has no usable caption{f': {left_out}' if left_out else ''}")
        return {"image": rgb_image(record, f"{self.name}: record {i}"), "captions": captions, "id": name}
