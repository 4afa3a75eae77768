"""Speech: the real Whisper base on real recordings, files that are no speech, the end of a phrase, the command."""

import io
import re
import wave

import numpy as np
import pytest
from helpers.spoken_clips import clip, whisper_base
from helpers.tiny_pipeline import save_pipeline
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.conditioning.languages import LANGUAGES, language_name
from maskgil_jax.conditioning.speech import (
    END_OF_PHRASE,
    RATE,
    NoSpeech,
    check_model,
    load_transcriber,
    phrases,
    read_audio,
)
from maskgil_jax.config import ConfigError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of Whisper base."""
    return str(whisper_base(tmp_path_factory.mktemp("whisper") / "base"))


@pytest.fixture(scope="module")
def transcriber(base):
    return load_transcriber(base, "cpu")


def wav(samples, rate=RATE, stated=None):
    """The bytes of a WAV file; `stated`: the length that its header gives, in bytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    data = bytearray(buffer.getvalue())
    if stated is not None:
        data[4:8], data[40:44] = (stated + 36).to_bytes(4, "little"), stated.to_bytes(4, "little")
    return bytes(data)


# ------------------------------------------------------------------------------------------------ translation
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zh/nihao_shijie", "hello.*world"),
        ("fr/bonjour_monde", "hello.*world"),
        ("ja/konnichiwa_sekai", "hello.*world"),
        ("pt/ola_mundo", "hello"),
        ("pt/contagem", "1.*2.*3.*10"),
    ],
)
def test_real_whisper_translates_a_real_recording(transcriber, name, expected):
    heard = transcriber(clip(name))
    assert re.search(expected, heard.text.lower()), heard
    assert heard.language == name[:2] and heard.language_probability > 0.7
    assert 0 < heard.confidence <= 1 and 0 < heard.speech_seconds <= heard.seconds


def test_given_language_is_not_detected(transcriber):
    heard = transcriber(clip("fr/bonjour_monde").read_bytes(), "fr")
    assert heard.language_probability == 1.0 and "world" in heard.text.lower()
    with pytest.raises(ConfigError, match=r"^language: 'xx'"):
        transcriber(clip("fr/bonjour_monde"), "xx")


def test_uncertain_result_is_returned_with_a_warning(transcriber):
    heard = transcriber(clip("es/hola_mundo"))
    assert heard.text and any("uncertain" in warning for warning in heard.warnings)


def test_silence_and_noise_are_no_speech(transcriber):
    rng, second = np.random.default_rng(0), np.arange(2 * RATE)
    sounds = [np.zeros(2 * RATE), rng.normal(0, 0.1, 2 * RATE), 0.3 * np.sin(second / 20), np.zeros(10)]
    for samples in sounds:
        with pytest.raises(NoSpeech, match="nobody speaks"):
            transcriber(wav(samples))


def test_one_transcriber_a_process(base, transcriber):
    assert load_transcriber(base, "cpu") is transcriber


def test_languages_of_the_model_have_names(transcriber):
    assert set(transcriber.languages) == set(LANGUAGES) and language_name("pt") == "Portuguese"


@pytest.mark.parametrize("model", ["turbo", "large-v3-turbo", "distil-large-v3", "base.en", "/models/my-distil-whisper"])
def test_models_that_cannot_translate_are_refused_by_name(model):
    with pytest.raises(ConfigError, match=r"speech: \S+ (cannot translate|knows English alone)"):
        check_model(model)


def test_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'medium'"):
        check_model("mediun")


# ------------------------------------------------------------------------------------------------ files
@pytest.fixture
def decoder():
    pytest.importorskip("av", reason="speech needs the extra [speech]")


@pytest.mark.usefixtures("decoder")
def test_recording_is_read_at_16_khz_whatever_its_rate():
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    samples = read_audio(wav(tone, 44100))
    assert samples.dtype == np.float32 and abs(len(samples) - RATE) < 100
    assert np.abs(np.fft.rfft(samples)).argmax() == pytest.approx(440, abs=2)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("stated", [0, 100, 2**31, 2**32 - 40], ids=str)
def test_wav_that_lies_about_its_length_is_read_within_limits(stated):
    data = wav(np.zeros(RATE), stated=stated)
    try:
        assert len(read_audio(data)) <= RATE
    except ConfigError as error:
        assert str(error).startswith("audio: ")


@pytest.mark.usefixtures("decoder")
def test_long_recording_is_refused_after_its_first_seconds():
    with pytest.raises(ConfigError, match="longer than 60 s"):
        read_audio(wav(np.zeros(20 * 60 * 800), 800))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF" + bytes(40),
        b"ID3" + bytes(99),
    ],
    ids=["empty", "playlist", "concat", "riff", "mp3"],
)
def test_file_that_is_no_recording_is_refused(data):
    with pytest.raises(ConfigError, match=r"^audio: "):
        read_audio(data)


# ------------------------------------------------------------------------------------------------ phrases
def test_phrase_ends_after_half_a_second_of_silence():
    pytest.importorskip("faster_whisper", reason="speech needs the extra [speech]")
    first, second = read_audio(clip("fr/bonjour_monde")), read_audio(clip("pt/ola_mundo"))
    gap = np.zeros(RATE, np.float32)
    stream = np.concatenate([gap, first, gap, second, gap])
    given = 0

    def chunks():
        nonlocal given
        for chunk in np.array_split(stream, len(stream) // 1600):
            given += len(chunk)
            yield chunk

    ends = []
    for phrase in phrases(chunks()):
        ends.append(given / RATE)
        assert len(phrase) > 0.5 * RATE
    assert len(ends) == 2
    spoken_until = 1 + len(first) / RATE
    assert spoken_until - 0.6 <= ends[0] - END_OF_PHRASE <= spoken_until + 0.3


def test_silence_has_no_phrase():
    pytest.importorskip("faster_whisper", reason="speech needs the extra [speech]")
    assert list(phrases([np.zeros(1600, np.float32)] * 30)) == []


# ------------------------------------------------------------------------------------------------ the command
def test_speak_draws_what_was_said(base, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    save_pipeline(tmp_path / "w")
    argv = [
        "speak",
        clip("fr/bonjour_monde"),
        "--speech",
        base,
        "--weights",
        tmp_path / "w",
        "--out",
        tmp_path / "out",
        "--count",
        2,
    ]
    assert cli.main(list(map(str, argv))) == 0
    printed = capsys.readouterr().out
    assert re.search(r"French \(9\d%\): Hello.*world", printed) and "drawn as: " in printed
    assert [Image.open(tmp_path / "out" / f"spoken-00{i}.png").size for i in range(2)] == [(16, 16), (16, 16)]


def test_speak_gives_no_picture_of_silence(base, tmp_path, capsys):
    save_pipeline(tmp_path / "w")
    (tmp_path / "quiet.wav").write_bytes(wav(np.zeros(RATE)))
    argv = ["speak", tmp_path / "quiet.wav", "--speech", base, "--weights", tmp_path / "w", "--out", tmp_path / "out"]
    assert cli.main(list(map(str, argv))) == 2
    assert "nobody speaks" in capsys.readouterr().err and not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("argv", [[], ["a.wav", "--microphone"], ["a.wav", "--speech", "turbo"]], ids=["none", "both", "turbo"])
def test_speak_refuses_wrong_usage(argv, capsys):
    assert cli.main(["speak", *argv]) == 2
    assert "error: " in capsys.readouterr().err
