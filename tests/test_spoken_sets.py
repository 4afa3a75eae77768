"""Sets of spoken prompts: made by a text-to-speech program, read back, and transcribed by the real Whisper base."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
from helpers.spoken_clips import whisper_base
from helpers.text_folders import with_tokenizer
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline

from maskgil_jax import cli
from maskgil_jax.conditioning.speech import NoSpeech, Transcript, read_audio
from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation.benchmarks import polyvoice, spoken_sets
from maskgil_jax.evaluation.benchmarks.polyvoice import Spoken, read_spoken, transcribed
from maskgil_jax.evaluation.benchmarks.spoken_sets import build_spoken_set, espeak_ng, gtts, kokoro, read_phrases
from maskgil_jax.text_encoders.load import load_text_encoder

PHRASES = [
    {"text": "good morning, my friends", "language": "es", "spoken": "Buenos días, mis amigos"},
    {"text": "a red house", "language": "en", "spoken": "a red house"},
]


def write(file, lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def program():
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs the program espeak-ng")


# ------------------------------------------------------------------------------------------------ sets
def test_set_of_a_function_is_read_back_in_order(tmp_path):
    said = []

    def say(text, language, file):
        said.append((text, language))
        file.write_bytes(text.encode() + bytes(44))

    build_spoken_set(PHRASES, tmp_path / "set", say)
    items = read_spoken(tmp_path / "set")
    assert said == [(p["spoken"], p["language"]) for p in PHRASES]
    assert [(i.text, i.language, i.spoken, i.heard) for i in items] == [(*p.values(), "") for p in PHRASES]
    assert [i.audio.relative_to(tmp_path).as_posix() for i in items] == ["set/es/000000.wav", "set/en/000001.wav"]
    assert items[1].audio.read_bytes().startswith(b"a red house")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl: a set is there already"):
        build_spoken_set(PHRASES, tmp_path / "set", say)
    build_spoken_set(PHRASES[:1], tmp_path / "set", say, overwrite=True)
    assert len(read_spoken(tmp_path / "set")) == 1


def test_interrupted_set_has_no_metadata(tmp_path):
    def say(text, language, file):
        file.write_bytes(bytes(99 if language == "es" else 44))

    with pytest.raises(ConfigError, match="en: made no sound of 'a red house'"):
        build_spoken_set(PHRASES, tmp_path, say)
    assert not (tmp_path / "metadata.jsonl").exists() and not (tmp_path / "en/000001.wav").exists()


def test_phrases_are_read_from_both_kinds_of_file(tmp_path):
    assert read_phrases(write(tmp_path / "p.jsonl", PHRASES)) == PHRASES
    (tmp_path / "p.txt").write_text("a red house\n\ntwo cats\n")
    assert [p["spoken"] for p in read_phrases(tmp_path / "p.txt")] == ["a red house", "two cats"]
    assert read_phrases(tmp_path / "p.txt")[0] == PHRASES[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": "../../etc"}, r"line 2: language: '\.\./\.\./etc' is no code"),
        ({"language": "-w"}, "line 2: language: '-w' is no code"),
        ({"spoken": " "}, "line 2: spoken is no text"),
        ({"text": 3}, "line 2: text is no text"),
    ],
)
def test_wrong_phrase_names_its_line(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        read_phrases(write(tmp_path / "p.jsonl", [PHRASES[0], {**PHRASES[1], **change}]))


# ------------------------------------------------------------------------------------------------ programs
def test_missing_programs_say_how_to_install_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gtts", None)
    monkeypatch.setitem(sys.modules, "kokoro", None)
    spoken_sets._kokoro.cache_clear()
    for say, hint in ((espeak_ng, "apt install espeak-ng"), (gtts, "pip install gTTS"), (kokoro, "pip install kokoro")):
        with pytest.raises(ConfigError, match=hint) as error:
            say("a", "en", tmp_path / "a.wav")
        assert "\n" not in str(error.value)


def test_gtts_saves_the_text_in_the_language_and_its_errors_are_one_line(tmp_path, monkeypatch):
    class FakeError(Exception):
        pass

    class FakeTTS:
        def __init__(self, text, lang):
            self.data = f"{lang}: {text}"

        def save(self, file):
            if "fail" in self.data:
                raise FakeError("no connection\nto the service")
            with open(file, "w") as out:
                out.write(self.data)

    monkeypatch.setitem(sys.modules, "gtts", types.SimpleNamespace(gTTS=FakeTTS, gTTSError=FakeError))
    gtts("hello", "zh", tmp_path / "a.mp3")
    assert (tmp_path / "a.mp3").read_text() == "zh-CN: hello"
    with pytest.raises(ConfigError, match=r"^gtts: fr: no connection$"):
        gtts("fail", "fr", tmp_path / "b.mp3")


def test_kokoro_joins_its_parts_into_one_recording(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="speech needs the extra [speech]")
    asked = []

    def pipeline(lang_code):
        def speak(text, voice):
            asked.append((lang_code, text, voice))
            yield "a", "b", np.full(12_000, 0.5, np.float32)
            yield "a", "b", np.full(12_000, -0.5, np.float32)

        return speak

    monkeypatch.setitem(sys.modules, "kokoro", types.SimpleNamespace(KPipeline=pipeline))
    spoken_sets._kokoro.cache_clear()
    kokoro("bonjour", "fr", tmp_path / "a.wav")
    spoken_sets._kokoro.cache_clear()
    samples = read_audio(tmp_path / "a.wav")
    assert asked == [("f", "bonjour", "ff_siwis")] and abs(len(samples) - 16_000) < 50
    assert samples[4000] == pytest.approx(0.5, abs=0.01) and samples[12_000] == pytest.approx(-0.5, abs=0.01)
    with pytest.raises(ConfigError, match="kokoro: sw: no voice"):
        kokoro("jambo", "sw", tmp_path / "b.wav")


@pytest.mark.usefixtures("program")
def test_espeak_ng_refuses_an_unknown_language(tmp_path):
    with pytest.raises(ConfigError, match=r"^espeak-ng: xx: .*voice does not exist"):
        espeak_ng("a", "xx", tmp_path / "a.wav")


# ------------------------------------------------------------------------------------------------ the benchmark
@pytest.mark.slow
@pytest.mark.usefixtures("program")
def test_benchmark_of_texts_spoken_by_espeak_ng_and_heard_by_whisper(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    base = whisper_base(tmp_path / "base")
    weights = save_text_pipeline(tmp_path / "w", load_text_encoder("minilm", max_tokens=TOKENS))
    write(tmp_path / "p.jsonl", PHRASES)
    (tmp_path / "clip").mkdir()
    command = ["evaluate", "--benchmark", "polyvoice", "--prompts"]
    spoken, out = tmp_path / "spoken", tmp_path / "out"
    assert cli.main(list(map(str, [*command, tmp_path / "p.jsonl", "--tts", "espeak-ng", "--out", spoken]))) == 0
    assert "2 recordings by espeak-ng" in capsys.readouterr().out
    (item, _) = transcribed(read_spoken(spoken), str(base))
    assert "morning" in item.heard.lower() or "friend" in item.heard.lower(), item
    given = [*command, spoken, "--weights", weights, "--speech", base, "--out", out, "--seed", "7"]
    assert cli.main(list(map(str, [*given, "--clip", with_tokenizer("clip", tmp_path / "clip")]))) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["benchmark"]["transcribed"] == 2 and results["benchmark"]["speech"] == str(base)
    assert set(results["scores"]) == {"text", "es", "en"}
    heard = [json.loads(line)["heard"] for line in (out / "heard.jsonl").read_text().splitlines()]
    assert heard[0] == item.heard


@pytest.mark.slow
def test_recordings_without_words_are_left_out_and_counted(tmp_path, capsys, monkeypatch, caplog):
    pytest.importorskip("tokenizers")

    def heard(audio, speech, language, **options):
        if audio.name == "000000.wav":
            raise NoSpeech(f"{audio}: no words can be made out")
        return [Transcript("a red home", language, 1.0, 0.9, 1.0, 1.0)]

    monkeypatch.setattr(polyvoice, "transcribe", heard)
    monkeypatch.setattr(polyvoice, "load_transcriber", lambda _: types.SimpleNamespace(languages=("es", "en")))
    weights = save_text_pipeline(tmp_path / "w", load_text_encoder("minilm", max_tokens=TOKENS))
    build_spoken_set(PHRASES, tmp_path / "set", lambda text, language, file: file.write_bytes(bytes(99)))
    (tmp_path / "clip").mkdir()
    args = ["evaluate", "--benchmark", "polyvoice", "--prompts", tmp_path / "set", "--weights", weights]
    args += ["--out", tmp_path / "out", "--clip", with_tokenizer("clip", tmp_path / "clip")]
    assert cli.main(list(map(str, args))) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    found = [results["benchmark"][name] for name in ("recordings", "transcribed", "unheard", "speech")]
    assert found == [1, 1, 1, "base"] and set(results["scores"]) == {"text", "en"}
    monkeypatch.setattr(polyvoice, "read_spoken", lambda folder: read_spoken(folder)[:1])
    assert cli.main(list(map(str, args))) == 2 and "hears no words in any of its 1 recordings" in capsys.readouterr().err


def test_given_transcript_is_kept_and_recordings_without_words_are_named(tmp_path):
    item = Spoken("a red house", "fr", tmp_path / "a.wav", heard="a red home")
    assert transcribed([item], "no such model") == [item]
    base = whisper_base(tmp_path / "base")
    with_wav = tmp_path / "a.wav"
    with_wav.write_bytes(b"sound")
    with pytest.raises(ConfigError, match=r"a\.wav: no `heard` in its line of metadata.jsonl, and not a WAV"):
        transcribed([Spoken("a red house", "fr", with_wav)], str(base))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "geneval", "--tts", "gtts"], "--tts, --speech: belong to polyvoice"),
        (["--benchmark", "polyvoice", "--tts", "gtts"], "--tts: give --prompts FILE"),
        (["--tts", "gtts"], "--tts: belongs to --benchmark"),
        (["--benchmark", "polyvoice", "--tts", "gtts", "--weights", "demo"], "--tts: makes a set alone"),
    ],
)
def test_wrong_usage_is_one_line(options, message, capsys):
    assert cli.main(["evaluate", *options]) == 2
    assert message in capsys.readouterr().err
