"""Makes a set of spoken prompts, as `polyvoice.read_spoken` reads it, from texts and a text-to-speech program."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.files.atomic import writing
from maskgil_jax.files.json_lines import read_json_objects
from maskgil_jax.pipelines.prompts import read_prompts

METADATA = "metadata.jsonl"
# Language -> (Kokoro's code, a voice).
KOKORO = {
    "en": ("a", "af_heart"),
    "es": ("e", "ef_dora"),
    "fr": ("f", "ff_siwis"),
    "hi": ("h", "hf_alpha"),
    "it": ("i", "if_sara"),
    "ja": ("j", "jf_alpha"),
    "pt": ("p", "pf_dora"),
    "zh": ("z", "zf_xiaobei"),
}
KOKORO_RATE = 24_000  # samples a second
_HINT = "a line is an object with text (English), language (a code such as fr) and spoken (the text in that language)"


def espeak_ng(text: str, language: str, file: Path) -> None:
    """Writes a WAV file with the program espeak-ng. The text is its standard input."""
    command = ["espeak-ng", "-b", "1", "-v", language, "-w", str(file), "--stdin"]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=120)
    except FileNotFoundError:
        raise ConfigError("espeak-ng: the program is not installed: apt install espeak-ng") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"espeak-ng: did not end within 120 s for {text[:40]!r}") from None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    require(done.returncode == 0, f"espeak-ng: {language}: {said[-1] if said else f'exit status {done.returncode}'}")


def gtts(text: str, language: str, file: Path) -> None:
    """Writes an MP3 file with Google Translate's online service, through the library gTTS."""
    try:
        from gtts import gTTS, gTTSError
    except ImportError:
        raise ConfigError("gtts: the library is not installed: pip install gTTS") from None
    try:
        gTTS(text, lang={"zh": "zh-CN"}.get(language, language)).save(os.fspath(file))
    except (gTTSError, ValueError, AssertionError, OSError) as error:  # the service, the language, the text, the disk
        raise ConfigError(f"gtts: {language}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None


def kokoro(text: str, language: str, file: Path) -> None:
    """Writes a WAV file with the network Kokoro, which its library downloads once."""
    require(language in KOKORO, f"kokoro: {language}: no voice; choose from {', '.join(KOKORO)}")
    parts = [np.asarray(part[2]).reshape(-1) for part in _kokoro(language)(text, voice=KOKORO[language][1])]
    samples = np.concatenate([np.zeros(0, np.float32), *parts])
    with wave.open(os.fspath(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(KOKORO_RATE)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


@functools.cache
def _kokoro(language: str) -> Any:
    try:
        from kokoro import KPipeline

        return KPipeline(lang_code=KOKORO[language][0])
    except ImportError as error:  # of itself, or of what it needs for the language
        hint = f"pip install kokoro 'misaki[{language}]'" if language in ("ja", "zh") else "pip install kokoro"
        raise ConfigError(f"kokoro: the library is not installed ({error}): {hint}") from None
    except Exception as error:  # of the hub's client
        raise ConfigError(f"kokoro: cannot be loaded ({str(error).splitlines()[:1]})") from None


# Name -> (text, language and file -> the file, ending of the file).
PROGRAMS: dict[str, tuple[Callable[[str, str, Path], None], str]] = {
    "espeak-ng": (espeak_ng, ".wav"),
    "gtts": (gtts, ".mp3"),
    "kokoro": (kokoro, ".wav"),
}


def read_phrases(path: str | os.PathLike) -> list[dict[str, str]]:
    """Texts to speak, with the fields text, language and spoken: of a .jsonl file, or English ones,
    a line each, of a .txt."""
    if Path(path).suffix != ".jsonl":
        return [{"text": r.prompt, "language": "en", "spoken": r.prompt} for r in read_prompts(path)]
    names, found = ("text", "language", "spoken"), []
    for number, record in read_json_objects(path, names, _HINT):
        wrong = next((name for name in names if not isinstance(record[name], str) or not record[name].strip()), None)
        require(wrong is None, f"{path}: line {number}: {wrong} is no text; {_HINT}")
        code = re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{2,8})*", record["language"])
        require(code is not None, f"{path}: line {number}: language: {record['language'][:20]!r} is no code; {_HINT}")
        found.append({name: record[name].strip() for name in names})
    return found


def build_spoken_set(
    phrases: Sequence[dict[str, str]],
    out: str | os.PathLike,
    tts: str | Callable[[str, str, Path], None],
    overwrite: bool = False,
) -> Path:
    """Speaks every phrase into `out`/LANGUAGE/NUMBER, and writes `out`/metadata.jsonl last. Returns that file.

    phrases: as `read_phrases` gives them. tts: a name of `PROGRAMS`, or a function that writes the recording of (text,
    language) to a WAV file. overwrite: replaces a set that is there, which is an error otherwise.
    """
    if isinstance(tts, str):
        choose("tts", tts, tuple(PROGRAMS))
    say, ending = PROGRAMS[tts] if isinstance(tts, str) else (tts, ".wav")
    file = Path(out) / METADATA
    require(overwrite or not file.exists(), f"{file}: a set is there already; give another folder, or overwrite")
    file.unlink(missing_ok=True)
    records = []
    for number, phrase in enumerate(phrases):
        audio = Path(phrase["language"]) / f"{number:06d}{ending}"
        with writing(Path(out) / audio) as part:
            say(phrase["spoken"], phrase["language"], part)
            empty = not part.exists() or part.stat().st_size <= 44  # bytes of a WAV header
            require(not empty, f"{tts}: {phrase['language']}: made no sound of {phrase['spoken'][:40]!r}")
        records.append({**phrase, "audio": audio.as_posix()})
    with writing(file, sync=True) as part:
        part.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return file
