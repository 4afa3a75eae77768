"""Reading ArrayRecord files; damage is a `ConfigError` of one line that names the file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from maskgil_jax.config import ConfigError
from maskgil_jax.config.base import one_line

_DAMAGE = (RuntimeError, ValueError, IndexError, OSError)  # what the library raises, Riegeli's messages among them


class RecordFiles:
    """Random access to the records of some ArrayRecord files, one file after the other. `name` is for messages."""

    def __init__(self, paths: Sequence[str | os.PathLike], name: str | os.PathLike):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.name = os.fspath(name)
        try:
            self._source = ArrayRecordDataSource([os.fspath(path) for path in paths])
            self._count = len(self._source)
        except _DAMAGE as error:
            raise ConfigError(f"{self.name}: not a readable ArrayRecord file ({one_line(error, 120)})") from None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> bytes:
        try:
            return self._source[i]
        except _DAMAGE as error:
            raise ConfigError(f"{self.name}: record {i} cannot be read ({one_line(error, 120)})") from None
