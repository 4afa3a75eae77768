"""Measures the promises of docs/reliability.md.

python -m tests.reliability --out runs/reliability     --rows 1,4 for some rows, --quick for few trials

A row with a good result in OUT is not run again (--again), so the same command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from maskgil_jax.files.atomic import write_json
from tests.reliability import folders, pairs, runs
from tests.reliability.programs import Sandbox

ROWS = {  # number: (what is tested, function, trials, trials with --quick)
    "1": ("kill -9 while saving", folders.kills, 50, 3),
    "2": ("crash loop: losses and final arrays", runs.crash_loop, 20, 2),
    "3": ("resume with other worker counts", runs.resume, 2, 1),
    "4": ("damaged checkpoints", folders.harm, 60, 4),
    "5": ("resharding", runs.reshard, 1, 1),
    "6": ("two processes against one", pairs.two, 1, 1),
    "7": ("processes that disagree", pairs.disagree, 10, 3),
    "8": ("SIGTERM", runs.stop, 20, 2),
    "9": ("bad steps", runs.spoil, 7, 2),
    "10": ("disk full, EIO", folders.full, 10, 2),
    "11": ("dead or frozen peer, hang", pairs.gone, 3, 1),
    "saves": ("blocking time of a save", folders.blocking, 10, 2),
}


def main() -> int:
    """Runs the rows and prints the table; returns 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="few trials of each")
    parser.add_argument("--out", type=pathlib.Path, help="folder of results; without one all rows are run")
    parser.add_argument("--again", action="store_true", help="also run rows that have a result")
    args = parser.parse_args()
    found = {}
    with temporary_folder() as cache:
        for number in args.rows.split(","):
            file = args.out and args.out / f"row_{number}.json"
            before = json.loads(file.read_text()) if file and file.exists() else {}
            if before.get("ok") and not args.again:
                found[number] = before
            else:
                found[number] = tried(number, args.quick, cache)
                if file:
                    write_json(file, found[number])
            row = found[number]
            print(
                f"{number:>5}  {'ok' if row['ok'] else 'BROKEN':<6}  {row['result']}: {row['text']}  [{row['seconds']} s]",
                flush=True,
            )
    print(table(found))
    return 0 if all(row["ok"] for row in found.values()) else 1


def tried(number: str, quick: bool, cache: pathlib.Path) -> dict:
    """Runs a row in a temporary folder and returns its result."""
    name, row, many, few = ROWS[number]
    with temporary_folder() as folder:
        sandbox, began = Sandbox(folder, cache), time.monotonic()
        try:
            result = {"ok": True, **row(sandbox, few if quick else many)}
        except AssertionError as error:
            result = {"ok": False, "result": "broken", "text": str(error)}
        finally:
            sandbox.close()
    return {"row": number, "name": name, **result, "seconds": round(time.monotonic() - began)}


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """A folder that this process deletes at the end of the block.

    `tempfile` would delete it in forked processes too.
    """
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(found: dict) -> str:
    """The rows as Markdown."""
    lines = ["| row | what is tested | result | |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {row['row']} | {row['name']} | {row['result']} | {row['text']} |" for row in found.values())]
    )


if __name__ == "__main__":
    sys.exit(main())
