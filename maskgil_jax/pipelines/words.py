"""The words of a request -> what the generator is asked for: the prompt itself, or the class that the words mean."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import ConfigError

SIMILAR = 0.35  # least cosine of a text and a class name, as MiniLM sees them, for the text to stand for the class


class PromptReader:
    """Reads prompts for one pipeline. A class-conditional generator draws the class whose name the words mean."""

    def __init__(self, pipeline: Any):
        self.conditioner = pipeline.conditioner
        self.names = tuple(getattr(pipeline.conditioner, "class_names", ())) if self.by_class else ()
        self._numbers = {name.casefold(): number for number, name in enumerate(self.names)}
        self._encoder: Any = None
        self._names_nd: np.ndarray | None = None
        self._lock = threading.Lock()

    @property
    def by_class(self) -> bool:
        """Whether the generator draws classes, not texts."""
        return isinstance(self.conditioner, ClassConditioner)

    def read(self, text: str, nearest: bool = False) -> tuple[str | int, str]:
        """(the request, what is drawn in words). Raises a `ConfigError` that names near classes if no class is meant.

        nearest: take the nearest class, however unlike the words it is.
        """
        if not self.by_class:
            return text, text
        words = text.strip()
        number = self._numbers.get(words.casefold())
        if number is None and words.isdecimal() and not (nearest and int(words) >= len(self.names)):
            number = int(self.conditioner.label_ids(words)[0])
        if number is None:
            number = self._meant(words, nearest)
        return number, self.names[number]

    def warm_up(self) -> None:
        """Compiles the comparison of texts with class names, where its tokenizer is installed."""
        if self.by_class and self._load():
            self._similar("flower")

    @functools.lru_cache(maxsize=4096)  # noqa: B019  (a reader lives as long as its server)
    def _meant(self, words: str, nearest: bool) -> int:
        if not words or not self._load():
            return int(self.conditioner.label_ids(words)[0])  # no class has this name: the error of the conditioner
        cosine_n = self._similar(words)
        best = np.argsort(-cosine_n)[:3]
        if cosine_n[best[0]] < SIMILAR and not nearest:
            near = ", ".join(repr(self.names[i]) for i in best)
            raise ConfigError(
                f"prompt: these weights draw {len(self.names)} classes, and {words[:60]!r} is like none of them; "
                f"the nearest are {near}"
            )
        return int(best[0])

    def _load(self) -> bool:
        """Loads the shipped text encoder once; False where `tokenizers` is not installed."""
        with self._lock:
            if self._encoder is None:
                from maskgil_jax.text_encoders.load import load_text_encoder

                try:
                    self._encoder = load_text_encoder("minilm", max_tokens=32)
                    self._names_nd = self._vectors(list(self.names))
                except (ConfigError, ImportError):
                    self._encoder = False
            return bool(self._encoder)

    def _vectors(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of texts: the mean of their states."""
        condition = self._encoder(texts)
        features_btd, mask_bt = np.asarray(condition.features_btd), np.asarray(condition.mask_bt)
        mean_bd = (features_btd * mask_bt[..., None]).sum(1) / mask_bt.sum(1, keepdims=True)
        return mean_bd / np.linalg.norm(mean_bd, axis=1, keepdims=True)

    def _similar(self, words: str) -> np.ndarray:
        assert self._names_nd is not None
        with self._lock:
            return self._names_nd @ self._vectors([words])[0]


def request_of_words(pipeline: Any, text: str) -> tuple[dict[str, Any], str]:
    """(labels= or prompts= of a call that draws the words, what is drawn in words)."""
    request, shown = PromptReader(pipeline).read(text, nearest=True)
    return ({"labels": [request]} if isinstance(request, int) else {"prompts": [request]}), shown
