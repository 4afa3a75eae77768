"""`events.jsonl` of a run: one JSON line for each event, with its time, over all starts of the run."""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading
from collections.abc import Iterator

from etils import epath

from maskgil_jax.files.paths import LineFile


class RunEvents:
    """Appends events: start, restore, unseen, damaged, first_step, save_begin, save_commit, save_failed, skip, alarm,
    signal, hang and stop.
    """

    def __init__(self, workdir, *, enabled: bool = True):
        self.lines = LineFile(epath.Path(workdir) / "events.jsonl") if enabled else None
        self.lock = threading.Lock()  # saves end in another thread

    def __call__(self, name: str, **fields) -> None:
        if self.lines is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with self.lock:
            self.lines.append(json.dumps({"time": now, "event": name, **fields}))


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Counts of the steps of a run. run: executed steps, with repetitions after restarts. skipped:
    bad steps, each once."""

    reached: int
    run: int
    restarts: int
    skipped: int

    @property
    def useful(self) -> int:
        return self.reached - self.skipped

    def __str__(self) -> str:
        share = f" ({self.useful / self.run:.0%})" if self.run else ""
        restarts = f"{self.restarts} restart{'s' * (self.restarts != 1)}"
        return f"goodput: {self.useful} of {self.run} steps run were useful{share}; {restarts}, {self.skipped} skipped"


def goodput(workdir) -> Goodput | None:
    """Computes the goodput of a run from its `events.jsonl` and `metrics.jsonl`; None if it has none.

    Steps count once they are logged, so up to `log_every` of those lost by each kill are not counted.
    """
    start, reached, run, restarts, skipped = 0, 0, 0, -1, set()
    for event in _lines(epath.Path(workdir) / "events.jsonl"):
        if event["event"] == "start":
            run += max(event.get("reached", start) - start, 0)
            start, restarts = 0, restarts + 1
        elif event["event"] == "restore":
            start = event["step"]
        elif event["event"] == "skip":
            skipped.add(event["step"])
        reached = max(reached, event.get("step", 0) if event["event"] in ("save_commit", "stop") else 0)
    if restarts < 0:
        return None
    logged = last_step(workdir)
    reached = max(reached, logged)
    return Goodput(reached, run + max(reached - start, 0), restarts, len({step for step in skipped if step <= reached}))


def last_step(workdir) -> int:
    """The last step in `metrics.jsonl`; 0 if there is none."""
    return max((line["step"] for line in _lines(epath.Path(workdir) / "metrics.jsonl")), default=0)


def _lines(file: epath.Path) -> Iterator[dict]:
    """The complete lines of a file of JSON lines; a kill may leave an incomplete one."""
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            yield json.loads(text)
        except ValueError:
            continue
