"""Recordings of a call -> the labels or prompts that it draws: what Whisper makes of them, in English."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from maskgil_jax.conditioning.speech import Transcript, load_transcriber
from maskgil_jax.config import ConfigError, require
from maskgil_jax.pipelines.words import PromptReader

_log = logging.getLogger(__name__)
_EXPECTED = "expected a path, the bytes of a file, float samples (n,) at 16 kHz, or a list of these"


def transcribe(audio: Any, speech: str = "base", language: str | None = None, **options: Any) -> list[Transcript]:
    """The English text of every recording: a path, the bytes of a file, float samples (n,) at 16 kHz,
    or a list of these.

    speech, language: as in `Pipeline.__call__`. options: of a call of the `Transcriber`. Raises `NoSpeech` if nobody
    speaks in one of them.
    """
    single = isinstance(audio, str | bytes | os.PathLike | np.ndarray)
    require(single or isinstance(audio, list | tuple), f"audio: {_EXPECTED}, got {type(audio).__name__}")
    recordings = [audio] if single else list(audio)
    require(bool(recordings), "audio: no recording given")
    names = [_name(recording, "audio" if single else f"audio[{i}]") for i, recording in enumerate(recordings)]
    transcriber = load_transcriber(speech)
    found = []
    for name, recording in zip(names, recordings, strict=True):
        try:
            found.append(transcriber(recording, language, **options))
        except ConfigError as error:  # those about a recording begin with "audio: "
            about, colon, rest = str(error).partition(": ")
            raise type(error)(f"{name}: {rest}" if colon and about == "audio" else str(error)) from None
    return found


def request_of_audio(
    pipeline: Any,
    audio: Any,
    speech: str = "base",
    language: str | None = None,
    on_transcript: Callable[[int, Transcript], Any] | None = None,
) -> dict[str, list]:
    """labels= or prompts= of a call that draws what is said, with logs of what that is and of what is uncertain."""
    reader, asked = PromptReader(pipeline), []
    for i, heard in enumerate(transcribe(audio, speech, language)):
        request, shown = reader.read(heard.text, nearest=True)
        drawn = "" if shown == heard.text else f", drawn as {shown!r}"
        _log.info("audio[%d]: %s (confidence %.2f): %r%s", i, heard.language, heard.confidence, heard.text, drawn)
        for warning in heard.warnings:
            _log.warning("audio[%d]: %s: %r", i, warning, heard.text)
        if on_transcript is not None:
            on_transcript(i, heard)
        asked.append(request)
    return {"labels" if reader.by_class else "prompts": asked}


def _name(recording: Any, name: str) -> str:
    """What errors call a recording; refuses what is none."""
    if isinstance(recording, np.ndarray):
        floats = np.issubdtype(recording.dtype, np.floating)
        require(floats, f"{name}: {_EXPECTED}, got an array of {recording.dtype}")
        require(bool(np.isfinite(recording).all()), f"{name}: holds NaN or infinite samples")
    elif isinstance(recording, str | os.PathLike):
        require(os.path.isfile(recording), f"{name}: there is no file {os.fspath(recording)!s}")
        return os.fspath(recording)
    else:
        require(isinstance(recording, bytes), f"{name}: {_EXPECTED}, got {type(recording).__name__}")
    return name
