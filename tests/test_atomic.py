"""Atomic writes of files and folders."""

import json
import os

import pytest

from maskgil_jax.files.atomic import clear, write_json, writing


def tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_writing_replaces_file_or_folder(tmp_path):
    for text in ("old", "new"):
        with writing(tmp_path / "made" / "file", sync=True) as part:
            part.write_text(text)
            assert tree(tmp_path).get("made/file") == (None if text == "old" else "old")
        assert tree(tmp_path) == {"made/file": text}
    with writing(tmp_path / "folder") as part:
        (part / "inside").mkdir(parents=True)
        (part / "inside" / "file").write_text("x")
    assert tree(tmp_path) == {"made/file": "new", "folder/inside/file": "x"}
    write_json(tmp_path / "more" / "é.json", {"é": 1})
    assert json.loads((tmp_path / "more" / "é.json").read_text("utf-8")) == {"é": 1}


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_error_while_writing_leaves_old_file(tmp_path, monkeypatch, call):
    """In the block (a folder half made), when it is brought to disk, and when it is renamed."""
    (tmp_path / "file").write_text("old")

    def fails(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), writing(tmp_path / "file", sync=True) as part:
        if call == "mkdir":
            part.mkdir()
            (part / "inside").write_text("half")
            fails()
        part.write_text("new")
        monkeypatch.setattr(os, call, fails)
    assert tree(tmp_path) == {"file": "old"} and len(list(tmp_path.iterdir())) == 1


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with writing(tmp_path / "file") as first, writing(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert tree(tmp_path) == {"file": "first"}


def test_clear_removes_remains_of_killed_writers(tmp_path):
    for name in (".a[1].0123abcd.part", ".b.0123abcd.part", "a.part", ".part"):
        (tmp_path / name).write_text("left")
    (tmp_path / ".c.0123abcd.part" / "inside").mkdir(parents=True)
    clear(tmp_path, "a[1]")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.0123abcd.part", ".c.0123abcd.part", ".part", "a.part"]
    clear(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".part", "a.part"]
    clear(tmp_path / "nowhere")
