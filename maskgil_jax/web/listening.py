"""Speech for the server: one transcriber for everybody, and a bounded number of recordings that wait for it."""

from __future__ import annotations

import threading

from maskgil_jax.conditioning.speech import Transcript, load_transcriber
from maskgil_jax.web.engine import QueueFull

MAX_WAITING = 8  # recordings


class Speech:
    """Translates recordings of clients to English."""

    def __init__(self, model: str, max_seconds: float = 60.0):
        self._transcriber = load_transcriber(model)
        self._places = threading.BoundedSemaphore(MAX_WAITING)
        self.model, self.max_seconds = f"whisper-{self._transcriber.name}", max_seconds

    @property
    def languages(self) -> tuple[str, ...]:
        return self._transcriber.languages

    def translate(self, audio: bytes, language: str | None = None) -> Transcript:
        """The English text of a recording. Raises `QueueFull` where too many wait."""
        if not self._places.acquire(blocking=False):
            raise QueueFull(MAX_WAITING)
        try:
            return self._transcriber(audio, language, self.max_seconds)
        finally:
            self._places.release()
