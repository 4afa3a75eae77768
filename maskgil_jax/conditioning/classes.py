"""Class labels -> `ClassCondition`."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.config.base import shown
from maskgil_jax.models.condition import ClassCondition

Labels = int | str | Sequence[int | str] | np.ndarray | ClassCondition


def _listed(labels: Any) -> list:
    """The labels of a request one by one. Arrays, of NumPy or JAX, become Python numbers."""
    if isinstance(labels, (int, float, str, bytes)) or labels is None:
        return [labels]
    if hasattr(labels, "__array__"):
        labels_b = np.asarray(labels)
        require(labels_b.ndim <= 1, f"labels: expected numbers or names of shape (b,), got an array of shape {labels_b.shape}")
        return labels_b.reshape(-1).tolist()
    try:
        return [label.item() if getattr(label, "shape", None) == () else label for label in labels]
    except TypeError:
        return [labels]


@dataclasses.dataclass(frozen=True)
class ClassConditioner:
    """Conditions on one of `class_names`.

    An integer is a class number; text is a name, or a number if no class has it.
    """

    class_names: tuple[str, ...]
    batch_keys, frozen = ("label",), None

    def encode(self, requests: Labels) -> ClassCondition:
        """Labels -> their condition. A `ClassCondition` is checked and returned, so a request is converted once."""
        if not isinstance(requests, ClassCondition):
            return ClassCondition(self.label_ids(requests))
        label_b, count = np.asarray(requests.label_b), len(self.class_names)
        if label_b.ndim != 1 or not len(label_b) or not np.issubdtype(label_b.dtype, np.integer):
            raise ConfigError(f"condition: expected integer labels of shape (b,), got {label_b.dtype} {label_b.shape}")
        outside = label_b[(label_b < 0) | (label_b > count)]
        require(not len(outside), f"condition: {outside[:1]} is out of range; classes are 0..{count - 1}, {count} is no class")
        return requests

    def label_ids(self, labels: int | str | Sequence[int | str] | np.ndarray) -> np.ndarray:
        """Class numbers or names -> int32 (b,). Raises a `ConfigError` that lists the range or the nearest names."""
        ids = [self._number(label) for label in _listed(labels)]
        require(bool(ids), "labels: none given")
        return np.asarray(ids, np.int32)

    def _number(self, label: Any) -> int:
        if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
            return self._in_range(int(label))
        if not isinstance(label, str):
            raise ConfigError(f"labels: expected class numbers or names, got {shown(label)} ({type(label).__name__})")
        text = label.strip()
        for name in (label, text):
            if name in self.class_names:
                return self.class_names.index(name)
        if re.fullmatch("[+-]?[0-9]{1,18}", text):
            return self._in_range(int(text))
        near = difflib.get_close_matches(text, self.class_names, n=3, cutoff=0.4)
        near += [n for n in self.class_names if text and text.lower() in n.lower() and n not in near][:3]
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {len(self.class_names)}"
        raise ConfigError(f"labels: no class is called {shown(text)}; {hint}" + ("" if near else ": --labels list shows them"))

    def _in_range(self, number: int) -> int:
        count = len(self.class_names)
        require(0 <= number < count, f"labels: {number} is out of range; classes are 0..{count - 1}")
        return number

    def from_batch(self, batch: dict, frozen: Any = None) -> ClassCondition:
        return ClassCondition(batch["label"])

    def examples(self, count: int) -> ClassCondition:
        return ClassCondition(np.linspace(0, len(self.class_names) - 1, count).astype(np.int32))

    def fixed_parameters(self, cfg: Any) -> dict[str, Any]:
        return {}

    def network_options(self) -> dict[str, Any]:
        return {"num_classes": len(self.class_names)}

    def metadata(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names)}
