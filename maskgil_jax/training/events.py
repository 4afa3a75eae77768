"""`events.jsonl` of a run: what happened when, one JSON line each, over all starts of the run."""

from __future__ import annotations

import datetime
import json
import threading

from etils import epath


class Events:
    """Writes start, restore, first_step, save_begin, save_commit, save_failed, damaged, skip, alarm, signal, hang, stop."""

    def __init__(self, workdir, *, enabled: bool = True):
        self.file = epath.Path(workdir) / "events.jsonl"
        self.enabled = enabled
        self.remote = "://" in str(workdir)
        self.lines = self.file.read_text() if enabled and self.remote and self.file.exists() else ""
        self.lock = threading.Lock()  # saves end in a thread of their own

    def __call__(self, name: str, **fields) -> None:
        if not self.enabled:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": name, **fields}) + "\n"
        with self.lock:
            if self.remote:  # buckets cannot append: the object is written whole again
                self.lines += line
                self.file.write_text(self.lines)
            else:
                with self.file.open("a") as file:
                    file.write(line)
