"""A data set prepared by TensorFlow Datasets (ImageNet, ...), read without TensorFlow."""

from __future__ import annotations

import os

import numpy as np


def open_prepared(name: str, split: str, data_dir: str | os.PathLike | None, needed: set[str]):
    """(records of a split by number, metadata of TFDS) of a data set that has the features `needed`.

    Raises a ValueError if the data set is unknown, not prepared as ArrayRecord, or lacks the split or a feature.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        raise ValueError(f"tfds:{name}: cannot be opened: {str(error).strip().splitlines()[0]}") from None
    advice = f"prepare it once: tfds build {name} --file_format=array_record --data_dir={builder.data_dir_root}"
    if not builder.is_prepared():
        raise ValueError(f"tfds:{name}: not prepared in {builder.data_dir_root}; {advice}")
    if not needed <= set(builder.info.features):
        raise ValueError(f"tfds:{name}: needs features {' and '.join(sorted(needed))}, has {', '.join(builder.info.features)}")
    try:
        return builder.as_data_source(split=split), builder.info
    except NotImplementedError:
        raise ValueError(f"tfds:{name}: prepared as {builder.info.file_format.value}; {advice}") from None
    except (ValueError, KeyError):
        splits = ", ".join(builder.info.splits)
        raise ValueError(f"tfds:{name}: no split {split!r}; it has {splits}") from None


def rgb_image(record: dict, where: str) -> np.ndarray:
    """The image of a record, grey repeated to uint8 (h, w, 3); `where` names the record in errors."""
    image = np.asarray(record["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"{where} is {image.dtype} {image.shape}; expected uint8 (h, w, 1 or 3)")
    return np.repeat(image, 3 // image.shape[2], axis=2)


def record_name(record: dict, default: str) -> str:
    """The file name of a record if it has one."""
    name = record.get("file_name", default)
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


class PreparedDataset:
    """Random access to one split of a TFDS data set prepared as ArrayRecord; records as in `ImageFolder`.

    name: as in TFDS, with config and version if needed ("imagenet2012", "cifar10:3.0.2").
    split: "train", "validation", "train[:10%]", ... data_dir: None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    Raises a ValueError if the data set is unknown, not prepared as ArrayRecord or has no such split, image or label.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | os.PathLike | None = None):
        self._records, info = open_prepared(name, split, data_dir, {"image", "label"})
        self.class_names = tuple(info.features["label"].names)
        self.name = f"tfds/{info.full_name}/{split}"
        self._split = split

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        record = self._records[i]
        image = rgb_image(record, f"{self.name}: record {i}")
        return {"image": image, "label": int(record["label"]), "id": record_name(record, f"{self._split}/{i}")}
