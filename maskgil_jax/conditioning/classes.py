"""Class labels -> `ClassCondition`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.models.condition import ClassCondition

Labels = int | str | Sequence[int | str] | np.ndarray | ClassCondition


@dataclasses.dataclass(frozen=True)
class ClassConditioner:
    """Conditions on one of `class_names`. An integer is a class number; text is a name, or a number if no class has it."""

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
        if isinstance(labels, (int, np.integer, str)):
            labels = [labels]
        ids = [self._number(label) for label in labels]
        require(bool(ids), "labels: none given")
        return np.asarray(ids, np.int32)

    def _number(self, label: Any) -> int:
        if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
            return self._in_range(int(label))
        text = str(label).strip()
        if text in self.class_names:
            return self.class_names.index(text)
        if text.lstrip("-").isdigit():
            return self._in_range(int(text))
        near = difflib.get_close_matches(text, self.class_names, n=3, cutoff=0.4)
        near += [n for n in self.class_names if text and text.lower() in n.lower() and n not in near][:3]
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {len(self.class_names)}"
        raise ConfigError(f"labels: no class is called {text!r}; {hint}" + ("" if near else ": --labels list shows them"))

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
