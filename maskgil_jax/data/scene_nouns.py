"""Nouns of the composed scenes, and the drawings that show them.

Each noun has a drawing in all three styles, is countable, and belongs to the training split of the built-in drawings,
so that scenes show none of the drawings that are held out.
"""

from __future__ import annotations

import functools

import numpy as np

from maskgil_jax.data.sources import emoji
from maskgil_jax.data.sources.emoji_captions import STYLE_WORDS

STYLES = tuple(STYLE_WORDS)
# Nouns as the drawings are named.
NAMES = (
    "dog,cat,horse,pig,rabbit,elephant,lion,zebra,kangaroo,camel,deer,penguin,owl,duck,parrot,"
    "flamingo,turtle,snake,crocodile,frog,whale,octopus,fish,dolphin,crab,lobster,snail,butterfly,"
    "scorpion,bear,panda,koala,shark,unicorn,red apple,banana,watermelon,lemon,pineapple,pear,peach,"
    "strawberry,coconut,tomato,carrot,avocado,eggplant,mushroom,mango,pizza,hot dog,taco,doughnut,cookie,"
    "birthday cake,croissant,pretzel,sandwich,teapot,key,bell,light bulb,hammer,axe,ladder,magnet,"
    "umbrella,guitar,violin,trumpet,drum,camera,television,telephone,pencil,crayon,backpack,crown,"
    "top hat,necktie,t-shirt,dress,trophy,kite,teddy bear,soccer ball,basketball,bicycle,bus,tractor,"
    "rocket,helicopter,airplane,sailboat,anchor,ambulance,fire engine,police car,castle,tent,tulip,rose,"
    "sunflower,cactus,palm tree,maple leaf,sun,star,rainbow,snowman,volcano,saxophone,accordion,robot,"
    "flying saucer,chair,red heart,motorcycle"
)
# Shorter or more usual words for some.
RENAMED = {
    "lady beetle": "ladybug",
    "honeybee": "bee",
    "tangerine": "orange",
    "kiwi fruit": "kiwi",
    "closed book": "book",
    "wrapped gift": "gift",
}
NOUNS: dict[str, str] = {name: name for name in NAMES.split(",")} | {noun: name for name, noun in RENAMED.items()}


@functools.cache
def drawings() -> dict[tuple[str, str], tuple[str, int]]:
    """(noun, style) -> (code of the emoji, number of its tile in the sheet of the style)."""
    source = emoji.emoji("train")
    by_name: dict[tuple[str, str], tuple[str, int]] = {}
    for i in range(len(source)):
        record = source.record(i)
        by_name.setdefault((record["names"]["en"], record["style"]), (record["code"], record["tile"]))
    return {(noun, style): by_name[name, style] for noun, name in NOUNS.items() for style in STYLES}


@functools.lru_cache(maxsize=4096)
def drawing(noun: str, style: str, side: int) -> np.ndarray:
    """The drawing of a noun, uint8 (side, side, 3) on white; read-only, as it is shared."""
    image = emoji._tiles(style)[drawings()[noun, style][1]]
    if side != emoji.TILE:
        from PIL import Image

        image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    image = image.copy()
    image.flags.writeable = False
    return image
