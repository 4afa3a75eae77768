"""Options for reading captions."""

from __future__ import annotations

import dataclasses

from .base import check_ranges, require


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Which captions of a file are read.

    fields: names in JSON objects that hold a caption or a list of them; all that are present are read, in this order.
    max_characters: longer captions are left out. It is far above what text encoders take: they cut at their own length.
    """

    fields: tuple[str, ...] = ("caption", "captions", "text")
    max_characters: int = 4000

    def __post_init__(self):
        check_ranges(self)
        require(bool(self.fields) and all(self.fields), f"fields: must name at least one field, got {self.fields}")
