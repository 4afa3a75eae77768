"""English noun phrases for the names of the built-in drawings: articles and plurals."""

from __future__ import annotations

import re

PREPOSITIONS = {
    "with",
    "in",
    "of",
    "on",
    "behind",
    "and",
    "from",
    "without",
    "at",
    "for",
    "over",
    "under",
    "holding",
    "showing",
}
# Heads of names that take no article: uncountable nouns, adjectives and proper names.
NO_ARTICLE = set(
    "bacon bread butter sushi rice spaghetti popcorn corn honey garlic salt sake mate ice fog fire lightning coral "
    "wood money yarn thread dna soap paper luggage clothing sand hair blood water food cooking camping sunrise sunset "
    "wedding construction baggage customs immigration tennis volleyball basketball football baseball softball "
    "badminton hockey lacrosse pong bowling cricket aries taurus gemini cancer leo virgo libra scorpio sagittarius "
    "capricorn aquarius pisces ophiuchus fuji broccoli curry oden dango mahjong people children women men locked "
    "unlocked foggy information multiply divide plus minus radioactive biohazard uppercase lowercase infinity om "
    "copyright registered falafel bald ".split()
)
SINGULAR_S = {
    "bus",
    "trolleybus",
    "minibus",
    "cactus",
    "octopus",
    "hibiscus",
    "lotus",
    "compass",
    "glass",
    "dress",
    "rhinoceros",
    "fleur-de-lis",
    "hippopotamus",
}
COUNTED_ING = {"ring", "wing", "building", "dumpling", "seedling", "king"}
VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!ni|fo|s\b)|hour|x-ray|s(?=os)|8)", re.IGNORECASE)
CONSONANT_SOUND = re.compile(r"(?:eu|ewe|one\b|once)", re.IGNORECASE)
IRREGULAR = {
    **{"fish": "fish", "deer": "deer", "sheep": "sheep", "mouse": "mice", "goose": "geese", "snowman": "snowmen"},
    **{"leaf": "leaves", "knife": "knives", "cactus": "cacti"},
    **{noun: noun + "es" for noun in ("tomato", "potato", "mango", "volcano")},
}


def article(phrase: str) -> str:
    """ "a" or "an", by the sound that the phrase begins with."""
    return "an" if VOWEL_SOUND.match(phrase) and not CONSONANT_SOUND.match(phrase) else "a"


def noun_phrase(name: str) -> str:
    """A name with its indefinite article, if it takes one: "a dog", "an owl", "grapes", "the flag of Peru"."""
    kind, colon, rest = name.partition(": ")
    if colon:
        if kind == "flag":
            return f"the flag of {rest}"
        if kind == "keycap":
            return f"the keycap {rest}"
        return f"{article(kind)} {kind} of {rest}" if kind == "family" else f"{article(kind)} {kind}, {rest}"
    words = name.split()
    end = next((i for i, word in enumerate(words) if i and word.lower() in PREPOSITIONS), len(words))
    head = words[end - 1].lower().strip("“”!.")
    plural = head.endswith("s") and not head.endswith(("ss", "us")) and head not in SINGULAR_S
    gerund = end == 1 and head.endswith("ing") and head not in COUNTED_ING
    if plural or gerund or head in NO_ARTICLE or head == "o’clock" or head.endswith("-thirty"):
        return name
    return f"{article(name)} {name}"


def plural(name: str) -> str:
    """The plural of a name of which the last word is the noun: "red apples", "foxes", "mice"."""
    rest, _, noun = name.rpartition(" ")
    if noun in IRREGULAR:
        noun = IRREGULAR[noun]
    elif noun.endswith(("s", "x", "z", "ch", "sh")):
        noun += "es"
    elif noun.endswith("y") and noun[-2] not in "aeiou":
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return f"{rest} {noun}".strip()
