"""`pipeline(audio=...)`: recordings are drawn as what the real Whisper base makes of them.

The others give no picture.
"""

import logging

import numpy as np
import pytest
from helpers.spoken_clips import clip, whisper_base
from helpers.tiny_pipeline import tiny_pipeline
from helpers.tiny_text_pipeline import TOKENS, text_pipeline

from maskgil_jax.conditioning.speech import RATE, NoSpeech, Transcript, read_audio
from maskgil_jax.config import ConfigError
from maskgil_jax.pipelines import spoken
from maskgil_jax.text_encoders.load import load_text_encoder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(whisper_base(tmp_path_factory.mktemp("whisper") / "base"))


@pytest.fixture(scope="module")
def texts():
    pytest.importorskip("tokenizers")
    return text_pipeline(load_text_encoder("minilm", max_tokens=TOKENS))


@pytest.fixture
def heard(monkeypatch):
    """A transcriber that hears "hello" in everything, and the arguments it was called with."""
    calls = []

    def transcriber(audio, language=None):
        calls.append((audio, language))
        return Transcript("hello", "fr", 0.5, 0.4, 1.0, 0.9, ("the words are uncertain; check the text",))

    monkeypatch.setattr(spoken, "load_transcriber", lambda name: calls.append(name) or transcriber)
    return calls


# ------------------------------------------------------------------------------------------------ the real model
@pytest.mark.slow
def test_recordings_are_drawn_as_their_english_texts(base, texts, caplog):
    caplog.set_level(logging.INFO, "maskgil_jax.pipelines.spoken")
    paths, said = [clip("fr/bonjour_monde"), clip("ja/konnichiwa_sekai")], {}
    images = texts(audio=paths, speech=base, seed=3, on_transcript=said.__setitem__)
    assert sorted(said) == [0, 1] and [said[i].language for i in (0, 1)] == ["fr", "ja"]
    np.testing.assert_array_equal(images, texts(prompts=[said[0].text, said[1].text], seed=3))
    assert "audio[0]: fr (confidence 0." in caplog.text and said[1].text in caplog.text


def test_samples_give_the_images_of_their_file(base, texts):
    path, said = clip("fr/bonjour_monde"), {}
    images = texts(audio=read_audio(path), speech=base, language="fr", on_transcript=said.__setitem__)
    assert "world" in said[0].text.lower()
    np.testing.assert_array_equal(images, texts(audio=str(path), speech=base, language="fr"))


def test_stream_of_a_recording_ends_with_the_images_of_a_call(base, texts):
    asked = dict(audio=clip("pt/ola_mundo"), speech=base, language="pt", seed=5, steps=3)
    *_, (step, images) = texts.stream(**asked)
    assert step == 3
    np.testing.assert_array_equal(images, texts(**asked))


def test_silence_names_its_recording_and_gives_no_picture(base, texts):
    with pytest.raises(NoSpeech, match=r"^audio: nobody speaks in these 1\.0 s"):
        texts(audio=np.zeros(RATE, np.float32), speech=base)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    with pytest.raises(NoSpeech, match=r"^audio\[1\]: nobody speaks"):
        texts.stream(audio=[read_audio(clip("fr/bonjour_monde")), noise], speech=base)


# ------------------------------------------------------------------------------------------------ without it
def test_uncertain_recording_is_drawn_with_a_warning(heard, texts, caplog):
    images = texts(audio=b"sound", seed=1)
    np.testing.assert_array_equal(images, texts(prompts="hello", seed=1))
    assert heard == ["base", (b"sound", None)]
    assert "audio[0]: the words are uncertain; check the text: 'hello'" in caplog.text


def test_class_conditional_pipeline_draws_the_nearest_class(heard, monkeypatch, caplog):
    pytest.importorskip("tokenizers")
    caplog.set_level(logging.INFO, "maskgil_jax.pipelines.spoken")
    pipeline = tiny_pipeline()
    monkeypatch.setattr(spoken, "load_transcriber", lambda _: lambda *_: Transcript("a small kitten", "fr", 1.0, 0.9, 1.0, 1.0))
    np.testing.assert_array_equal(pipeline(audio=b"sound", seed=2), pipeline("cat", seed=2))
    assert "'a small kitten', drawn as 'cat'" in caplog.text


def test_numbers_of_recordings_and_seeds_are_those_of_prompts(heard, texts):
    images = texts(audio=[b"a", b"b"], num_per_label=2, language="fr", speech="small")
    assert images.shape[0] == 4 and heard == ["small", (b"a", "fr"), (b"b", "fr")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": b"a", "prompts": "a"}, "labels, prompts, audio: give one of them"),
        ({"prompts": "a", "language": "fr"}, "language, on_transcript: belong to audio"),
        ({"audio": []}, "audio: no recording given"),
        ({"audio": 3}, "audio: expected a path, the bytes of a file, float samples"),
        ({"audio": [b"a", 0.5]}, r"audio\[1\]: expected a path.* got float"),
        ({"audio": np.zeros(9, np.int16)}, "audio: expected .* got an array of int16"),
        ({"audio": np.full(9, np.nan)}, "audio: holds NaN"),
        ({"audio": ["missing.wav"]}, r"audio\[0\]: there is no file missing.wav"),
    ],
)
def test_wrong_recordings_are_one_line_before_anything_is_drawn(heard, texts, options, message):
    for call in (texts, texts.stream):
        with pytest.raises(ConfigError, match=message):
            call(**options)
    assert not heard
