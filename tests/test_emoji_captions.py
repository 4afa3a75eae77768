"""Captions of the built-in drawings, and the English in them."""

import collections

import numpy as np
import pytest

from maskgil_jax.data.caption_sets import open_captions
from maskgil_jax.data.sources.emoji import emoji
from maskgil_jax.data.sources.emoji_captions import STYLE_NAMES, STYLE_WORDS, EmojiCaptions, emoji_captions
from maskgil_jax.data.sources.english import noun_phrase, plural

LADDER = {
    "style": "fluent-emoji-flat",
    "group": "objects",
    "subgroup": "tools",
    "names": {"en": "ladder", "es": "escalera"},
    "tags": ["climb", "rung", "step"],
}


def test_emoji_captions_are_composed_of_name_tags_style_and_group():
    assert emoji_captions(LADDER) == (
        "ladder",
        "a ladder",
        "a bright drawing of a ladder",
        "a ladder, Fluent style",
        "a ladder (objects: tools)",
        "a ladder: climb, rung, step",
        "climb, rung, step",
        "a bright drawing of a ladder, climb, rung, step",
    )
    assert len(emoji_captions({**LADDER, "tags": []})) == 5
    assert emoji_captions({**LADDER, "tags": ["ladder"]}).count("ladder") == 1


def test_emoji_captions_of_all_drawings_are_usable_and_tell_styles_apart():
    source, seen = emoji("all"), collections.defaultdict(set)
    for i in range(len(source)):
        record = source.record(i)
        captions = emoji_captions(record)
        assert 4 <= len(captions) == len(set(captions)) <= 8
        assert all(c == " ".join(c.split()) and 0 < len(c) < 250 for c in captions), captions
        seen[captions[2]].add(record["style"])
    assert all(len(styles) == 1 for styles in seen.values())
    assert set(STYLE_WORDS) == set(STYLE_NAMES) == {"noto", "fluent-emoji-flat", "twemoji"}


def test_emoji_caption_source_gives_the_drawings_with_captions():
    source, images = open_captions("emoji", split="test"), emoji("test")
    assert isinstance(source, EmojiCaptions) and len(source) == len(images)
    for i in (0, 7, len(source) - 1):
        record = source[i]
        assert record["captions"] == source.captions(i) == emoji_captions(images.record(i)) and record["id"] == images[i]["id"]
        np.testing.assert_array_equal(record["image"], images[i]["image"])
    assert len(EmojiCaptions("train")) + len(source) == len(EmojiCaptions("all"))


@pytest.mark.parametrize(
    "name, phrase",
    [
        ("dog", "a dog"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass done", "an hourglass done"),
        ("ewe", "a ewe"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("wine glass", "a wine glass"),
        ("cloud with lightning", "a cloud with lightning"),
        ("money with wings", "money with wings"),
        ("ring", "a ring"),
        ("cooking", "cooking"),
        ("woman running", "a woman running"),
        ("one o’clock", "one o’clock"),
        ("flag: Peru", "the flag of Peru"),
        ("keycap: 3", "the keycap 3"),
        ("family: man, boy", "a family of man, boy"),
        ("person: beard", "a person, beard"),
    ],
)
def test_noun_phrase(name, phrase):
    assert noun_phrase(name) == phrase


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dog", "dogs"),
        ("fox", "foxes"),
        ("mouse", "mice"),
        ("strawberry", "strawberries"),
        ("key", "keys"),
        ("red apple", "red apples"),
        ("tomato", "tomatoes"),
        ("bus", "buses"),
        ("fish", "fish"),
        ("peach", "peaches"),
    ],
)
def test_plural(name, expected):
    assert plural(name) == expected
