"""Options of the server (`maskgil serve`)."""

from __future__ import annotations

import dataclasses

from .base import check_ranges, require


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What the server accepts, and how it shares batches.

    batch_sizes: images per network call; all are compiled at the start. max_wait_ms: how long an image waits for others
    that can share its batch. max_queue: images that may wait; more are refused (429). time_limit: seconds until a
    request that was not drawn is given up (504). max_images: images a request. sizes: (height, width) in pixels that
    requests may have; empty: the training size and, where positions allow it, 3:2 and 2:3. steps: decoding steps that
    requests may have; the stored number is always one of them. ar_ratios: shares of causal tokens that requests may
    have, with a causal network.
    max_prompt: characters. max_upload: bytes of a request's body. max_side: pixels of an uploaded picture's longer
    side.
    max_audio_seconds: of a recording. header_seconds, body_seconds: time for a client to send its headers and its body.
    max_connections: open connections; more get 503. stop_seconds: time for running requests after SIGTERM.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    max_wait_ms: float = 4.0
    max_queue: int = 64
    time_limit: float = 60.0
    max_images: int = 8
    sizes: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = (4, 8, 16, 32)
    ar_ratios: tuple[float, ...] = (0.25, 0.5)
    max_prompt: int = 1000
    max_upload: int = 25_000_000
    max_side: int = 4096
    max_audio_seconds: float = 60.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    max_connections: int = 512
    stop_seconds: float = 60.0

    def __post_init__(self):
        check_ranges(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)):
                least = 0 if field.name == "max_wait_ms" else 1
                require(value >= least, f"{field.name}: must be at least {least}, got {value}")
        for name in ("batch_sizes", "steps"):
            values = getattr(self, name)
            whole = values and all(isinstance(value, int) and value >= 1 for value in values)
            require(whole, f"{name}: expected whole numbers of at least 1, got {values}")
        shares = all(0 < ratio <= 1 for ratio in self.ar_ratios)
        require(shares, f"ar_ratios: must be above 0 and at most 1, got {self.ar_ratios}")
        require(
            self.max_images <= self.max_queue,
            f"max_images: must be at most max_queue {self.max_queue}, got {self.max_images}; nothing larger is ever accepted",
        )
