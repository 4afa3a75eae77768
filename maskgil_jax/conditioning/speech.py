"""Speech in any of Whisper's languages -> English text: the front end of text-conditional generation.

Needs the extra [speech] (faster-whisper). A process holds one transcriber.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.config.base import nearest

MODELS = ("tiny", "base", "small", "medium", "large-v1", "large-v2", "large-v3")
RATE = 16_000  # samples a second, of Whisper and of Silero's voice activity detection
END_OF_PHRASE = 0.5  # seconds of silence
MAX_SECONDS = 60.0
# First bytes of a file, their offset -> FFmpeg's name of its format. Nothing else is opened: playlists and the like may
# refer to other files.
FORMATS = (
    (b"RIFF", 0, "wav"),
    (b"OggS", 0, "ogg"),
    (b"\x1a\x45\xdf\xa3", 0, "matroska"),
    (b"fLaC", 0, "flac"),
    (b"ID3", 0, "mp3"),
    (b"\xff\xfb", 0, "mp3"),
    (b"\xff\xf3", 0, "mp3"),
    (b"\xff\xf2", 0, "mp3"),
    (b"ftyp", 4, "mp4"),
)
MISSING = "speech: needs faster-whisper: pip install 'maskgil_jax[speech]'"
LOW_LANGUAGE, LOW_LOGPROB = 0.7, -1.0  # below: the result is returned with a warning
NO_SPEECH_PROBABILITY = 0.6  # with a low log probability: what Whisper wrote is not what was said


class NoSpeech(ConfigError):
    """A recording in which nobody speaks."""


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said, in English. confidence: mean probability of its tokens. seconds: length of the recording."""

    text: str
    language: str
    language_probability: float
    confidence: float
    seconds: float
    speech_seconds: float
    warnings: tuple[str, ...] = ()

    def about(self) -> dict[str, Any]:
        """The numbers behind the text, for an answer."""
        names = ("language_probability", "confidence", "speech_seconds")
        return {name: round(getattr(self, name), 4) for name in names} | {"warnings": list(self.warnings)}


class Transcriber:
    """Translates recordings to English with a Whisper model, one at a time.

    model: a name of `MODELS`, downloaded by faster-whisper where it is not there yet, or a folder of CTranslate2 files.
    device: "auto", "cpu" or "cuda".
    """

    def __init__(self, model: str, device: str = "auto"):
        self.name = check_model(model)
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ConfigError(MISSING) from None
        try:
            self._model = WhisperModel(model, device=device, compute_type="int8" if device == "cpu" else "auto")
        except Exception as error:  # of the hub's client, or of CTranslate2
            raise ConfigError(f"speech: cannot load Whisper {model!r} ({error})") from None
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        self._lock = threading.Lock()

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model understands."""
        return tuple(self._model.supported_languages)

    def __call__(
        self, audio: Any, language: str | None = None, max_seconds: float = MAX_SECONDS, voice_only: bool = True
    ) -> Transcript:
        """The English text of a recording: a file name, the bytes of a file, or float32 samples at 16 kHz.

        language: its code; None: detected, which takes twice as long. voice_only: leaves out what Silero's detector
        takes for no voice, to which synthetic voices may belong. Raises `NoSpeech` for silence and noise.
        """
        if language is not None and language not in self.languages:
            raise ConfigError(f"language: {language[:20]!r} is none of Whisper's{nearest(language, self.languages)}")
        samples = audio if isinstance(audio, np.ndarray) else read_audio(audio, max_seconds)
        require(samples.ndim == 1 and len(samples) > 0, f"audio: expected samples (n,), got {samples.shape}")
        with self._lock:
            segments, info = self._model.transcribe(
                np.asarray(samples, np.float32),
                language=language,
                task="translate",
                temperature=0.0,  # no second and third attempt with other temperatures
                condition_on_previous_text=False,
                without_timestamps=True,
                vad_filter=voice_only,
                vad_parameters={"min_silence_duration_ms": round(1000 * END_OF_PHRASE)},
            )
            parts = list(segments)
        if info.duration_after_vad <= 0 or not parts:
            raise NoSpeech(f"audio: nobody speaks in these {info.duration:.1f} s; speak closer to the microphone")
        lengths = np.array([max(1, len(part.tokens)) for part in parts])
        logprob = float(np.average([part.avg_logprob for part in parts], weights=lengths))
        silent = float(np.average([part.no_speech_prob for part in parts], weights=lengths))
        text = " ".join(part.text.strip() for part in parts).strip()
        if not text.strip(" .!?-\u266a\u266b[]()*") or (silent > NO_SPEECH_PROBABILITY and logprob < LOW_LOGPROB):
            raise NoSpeech(f"audio: no words can be made out in these {info.duration:.1f} s")
        probability = 1.0 if language is not None else float(info.language_probability)
        warnings = []
        if probability < LOW_LANGUAGE:
            warnings.append(f"the language is uncertain ({info.language}, {probability:.0%}); choose it")
        if logprob < LOW_LOGPROB:
            warnings.append("the words are uncertain; check the text")
        return Transcript(
            text, info.language, probability, math.exp(logprob), info.duration, info.duration_after_vad, tuple(warnings)
        )


def check_model(model: str) -> str:
    """The name of a model that can translate; a `ConfigError` says why another cannot."""
    name = os.path.basename(os.fspath(model).rstrip("/"))
    for part, why in (("turbo", "cannot translate"), ("distil", "cannot translate"), (".en", "knows English alone")):
        require(part not in name.lower(), f"speech: {name} {why}; choose from {', '.join(MODELS)}")
    known = model in MODELS or os.path.isdir(model)
    require(known, f"speech: no model or folder is called {model!r}{nearest(name, MODELS)}; choose from {', '.join(MODELS)}")
    return name


@functools.lru_cache(maxsize=1)
def load_transcriber(model: str = "base", device: str = "auto") -> Transcriber:
    """The transcriber of this process; another model replaces it."""
    return Transcriber(model, device)


def read_audio(source: str | os.PathLike | bytes, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """WAV, Ogg, WebM, FLAC, MP3 or MP4 -> float32 samples (n,) at 16 kHz, mono.

    Decoding ends with an error at `max_seconds`, whatever length the file states.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(MISSING) from None
    name = "audio" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read()
    kind = next((kind for magic, at, kind in FORMATS if source[at : at + len(magic)] == magic), None)
    require(kind is not None, f"{name}: not a WAV, Ogg, WebM, FLAC, MP3 or MP4 file")
    parts, count, limit = [], 0, round(max_seconds * RATE)
    try:
        with av.open(io.BytesIO(source), format=kind, metadata_errors="ignore") as container:
            require(len(container.streams.audio) > 0, f"{name}: holds no sound")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in _frames(container, resampler):
                parts.append(frame.to_ndarray().reshape(-1))
                count += len(parts[-1])
                require(count <= limit, f"{name}: longer than {max_seconds:g} s; speak a phrase")
    except ConfigError:
        raise
    except Exception as error:  # FFmpeg's errors on damaged files
        raise ConfigError(f"{name}: cannot be decoded ({type(error).__name__})") from None
    require(count > 0, f"{name}: holds no sound")
    return np.concatenate(parts).astype(np.float32) / 32768


def _frames(container: Any, resampler: Any) -> Iterator[Any]:
    for frame in container.decode(audio=0):
        frame.pts = None  # files that state wrong times are read as they come
        yield from resampler.resample(frame)
    yield from resampler.resample(None)


def phrases(chunks: Iterable[np.ndarray], silence: float = END_OF_PHRASE, max_seconds: float = 30.0) -> Iterator[np.ndarray]:
    """Cuts a stream of samples into phrases: each ends when nobody has spoken for `silence` seconds.

    chunks: float32 (n,) at 16 kHz, about a tenth of a second each. What comes before somebody speaks is dropped.
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(min_silence_duration_ms=100, speech_pad_ms=0, min_speech_duration_ms=200)
    heard = np.zeros(0, np.float32)
    for chunk in chunks:
        heard = np.concatenate([heard, np.asarray(chunk, np.float32)])
        spoken = get_speech_timestamps(heard, options)
        if not spoken:
            heard = heard[-round(0.5 * RATE) :]  # a word may just have begun
            continue
        quiet = (len(heard) - spoken[-1]["end"]) / RATE
        if quiet >= silence or len(heard) >= max_seconds * RATE:
            yield heard
            heard = np.zeros(0, np.float32)
    if len(heard) and get_speech_timestamps(heard, options):
        yield heard


def microphone(seconds: float = 0.1) -> Iterator[np.ndarray]:
    """Samples of the default microphone, for ever. Needs the package sounddevice and PortAudio."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ConfigError(f"--microphone: needs sounddevice and PortAudio ({error}): pip install sounddevice") from None
    count = round(seconds * RATE)
    with sounddevice.InputStream(samplerate=RATE, channels=1, dtype="float32", blocksize=count) as stream:
        while True:
            yield stream.read(count)[0][:, 0]
