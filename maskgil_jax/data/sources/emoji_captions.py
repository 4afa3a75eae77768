"""The built-in drawings as captioned images: captions composed of name, tags, style and group."""

from __future__ import annotations

from maskgil_jax.data.sources.emoji import TILE, emoji
from maskgil_jax.data.sources.english import article, noun_phrase

# What distinguishes the look of the styles: colour gradients; saturated plain areas; plain areas with outlines of
# details.
STYLE_WORDS = {"noto": "shaded", "fluent-emoji-flat": "bright", "twemoji": "plain"}
STYLE_NAMES = {"noto": "Noto", "fluent-emoji-flat": "Fluent", "twemoji": "Twemoji"}


def emoji_captions(record: dict) -> tuple[str, ...]:
    """Captions in English for one record of `EmojiSource.record`: five, and three more if it has tags.

    In turn: the name; the phrase; phrase with style word; phrase with the name of the style; phrase with group and
    subgroup. With tags: phrase and tags; tags alone; style word, phrase and tags. Captions that are equal are given
    once.
    """
    name, style = record["names"]["en"], record["style"]
    phrase = noun_phrase(name)
    drawn = f"{article(STYLE_WORDS[style])} {STYLE_WORDS[style]} drawing of {phrase}"
    found = [
        name,
        phrase,
        drawn,
        f"{phrase}, {STYLE_NAMES[style]} style",
        f"{phrase} ({record['group']}: {record['subgroup']})",
    ]
    if record["tags"]:
        tags = ", ".join(record["tags"])
        found += [f"{phrase}: {tags}", tags, f"{drawn}, {tags}"]
    return tuple(dict.fromkeys(found))


class EmojiCaptions:
    """Random access to the drawings of one split; `source[i]` is {"image", "captions", "id"}. See `emoji_captions`."""

    def __init__(self, split: str = "train", size: int = TILE):
        self._images = emoji(split, size=size)
        self.name = f"emoji-captions/{split}/{size}"

    def __len__(self) -> int:
        return len(self._images)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of drawing `i`, without reading it."""
        return emoji_captions(self._images.record(i))

    def __getitem__(self, i: int) -> dict:
        record = self._images[i]
        return {"image": record["image"], "captions": self.captions(i), "id": record["id"]}
