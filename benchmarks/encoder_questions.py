"""Questions that a text encoder is measured with: which of many texts is nearest to one that means the same."""

from __future__ import annotations

import itertools

# (phrase, name of the emoji that it describes); no phrase is a name or a tag.
PARAPHRASES = (
    ("automobile for emergencies with a siren", "ambulance"),
    ("vehicle that puts out fires", "fire engine"),
    ("a small yellow baby bird", "baby chick"),
    ("frozen dessert in a cone", "soft ice cream"),
    ("crimson fruit that grows on trees", "red apple"),
    ("spaceship that flies to the moon", "rocket"),
    ("a sick person with a fever", "face with thermometer"),
    ("weeping with many tears", "loudly crying face"),
    ("king of the savanna", "lion"),
    ("long eared hopping animal", "rabbit"),
    ("tool for driving nails", "hammer"),
    ("musical instrument with six strings", "guitar"),
    ("round thing kicked in a football match", "soccer ball"),
    ("building where kids are taught", "school"),
    ("keeps you dry in the rain", "umbrella"),
    ("device to call somebody", "telephone"),
    ("a blossom that faces the light", "sunflower"),
    ("curved yellow fruit", "banana"),
    ("eight armed sea creature", "octopus"),
    ("man made of snow with a carrot nose", "snowman"),
    ("two wheeled vehicle with pedals", "bicycle"),
    ("mountain erupting lava", "volcano"),
    ("colourful arc in the sky", "rainbow"),
    ("mythical horse with one horn", "unicorn"),
    ("it writes with graphite", "pencil"),
    ("ring of fried dough", "doughnut"),
    ("black and white bear eating bamboo", "panda"),
    ("bird that cannot fly and lives on ice", "penguin"),
    ("slow reptile with a shell", "turtle"),
    ("largest animal in the ocean", "whale"),
    ("insect with colourful wings", "butterfly"),
    ("animal with a long trunk", "elephant"),
    ("striped african horse", "zebra"),
    ("desert plant with thorns", "cactus"),
    ("italian flat bread with cheese and tomato", "pizza"),
    ("bathing room fixture with a shower head", "shower"),
    ("gift in a box with a ribbon", "wrapped gift"),
    ("jewelled hat of a monarch", "crown"),
    ("takes photographs", "camera"),
    ("opens a locked door", "key"),
)
NOUNS = "cat dog horse owl frog crab apple banana pear carrot key bell hammer guitar crown chair tent rocket bus tulip".split()


def compositions() -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """(captions of two objects, kind of question -> [(other words, number of the caption that means the same), ...]).

    Each pair of nouns that are neighbours in the list, or five apart, has four captions in a row. Questions name the
    objects in the order of the caption, or the other way round.
    """
    captions: list[str] = []
    questions: dict[str, list[tuple[str, int]]] = {"same order": [], "other order": []}
    count = len(NOUNS)
    for i, step in itertools.product(range(count), (1, 5)):
        a, b = (f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in (NOUNS[i], NOUNS[(i + step) % count]))
        start = len(captions)
        captions += [f"{a} to the left of {b}", f"{b} to the left of {a}", f"{a} above {b}", f"{b} above {a}"]
        questions["same order"] += [
            (f"on the left {a}, on the right {b}", start),
            (f"on the left {b}, on the right {a}", start + 1),
            (f"{a} on top, over {b}", start + 2),
            (f"{b} on top, over {a}", start + 3),
        ]
        questions["other order"] += [
            (f"{b} on the right, next to {a}", start),
            (f"{a} on the right, next to {b}", start + 1),
            (f"{b} under {a}", start + 2),
            (f"{a} under {b}", start + 3),
        ]
    return captions, questions
