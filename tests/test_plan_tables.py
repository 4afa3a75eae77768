"""The tables of docs/results/tpu_plans.md: which layouts are tried and compiled again, what a row says.

Nothing is compiled.
"""

import json
import pathlib
import sys

import pytest

from benchmarks import plans

FIGURES = dict(devices=256, images=256, written=2**20, arguments=2**20, products=1e12, quick=True, chip_memory=16 * 2**30)
ESTIMATES = {"roofline": {"seconds": 0.1, "mfu": 0.4}, "roofline_parts": {"products": 0.05, "memory": 0.1, "links": 0.01}}


def fake(folder: pathlib.Path, options: list[str], fits: bool, **changed) -> None:
    """A plan of these options as `maskgil plan --json` leaves it."""
    plan = FIGURES | dict(fits=fits, peak=2**33 if fits else 2**35, estimates=ESTIMATES) | changed
    full = not plan["quick"]
    plans.Plans(folder, True)._file(options, full).write_text(json.dumps(plan))


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compiling is replaced: steps fit if (remat, axis) is in the set given, per batch.

    The list says what was compiled.
    """
    asked, fitting = [], {}

    def main(command: list[str]) -> int:
        options = [o for o in command[1:] if o.startswith("--") and o not in ("--quick", "--json")]
        values = dict(o.removeprefix("--").split("=") for o in options)
        batch, layout = (
            int(values["config.batch_size"]),
            (values["config.model.remat"], "data" if values["config.mesh.data"] == "-1" else "fsdp"),
        )
        asked.append((batch, *layout))
        fake(tmp_path, options, layout in fitting[batch], quick="--quick" in command)
        return 0 if layout in fitting[batch] else 3

    monkeypatch.setattr(plans.cli, "main", main)
    return tmp_path, asked, fitting


@pytest.mark.slow
def test_tables_take_the_cheapest_layout_that_fits_and_retry_no_failure(compiled, monkeypatch):
    folder, asked, fitting = compiled
    monkeypatch.setattr(plans, "BATCHES", (256, 512, 1024))
    large = {layout for layout in plans.LAYOUTS if layout[0] == "full"}
    fitting |= {256: set(plans.LAYOUTS), 512: large, 1024: {("full", "fsdp")}}

    def rows(**options):
        return plans.train_rows(plans.Plans(folder, options.pop("compiling", True)), "b", "v5e:16x16", lambda name: True, False)

    found = rows()
    assert [(r["batch"], *r["layout"]) for r in found] == [(256, "dots", "data"), (512, "full", "data"), (1024, "full", "fsdp")]
    assert asked == [
        (256, "dots", "data"),
        *((512, *layout) for layout in (("dots", "data"), ("dots", "fsdp"), ("full", "data"))),
        *((1024, *layout) for layout in (("full", "data"), ("full", "fsdp"))),
    ]
    asked.clear()
    assert rows() == found and rows(compiling=False) == found and not asked


def test_tables_do_not_compile_a_state_that_is_too_large():
    assert plans.hopeless("xxl", "v5e:16x16", "data") and not plans.hopeless("xxl", "v5e:16x16", "fsdp")
    assert not plans.hopeless("xxl", "v5p:4x4x4", "data")


@pytest.mark.slow
def test_table_rows_hold_their_command_and_full_effort_replaces_low(compiled, monkeypatch):
    folder, asked, fitting = compiled
    fitting |= {256: set(plans.LAYOUTS)}
    monkeypatch.setattr(plans, "BATCHES", (256,))
    known = plans.Plans(folder, True)
    row = plans.train_rows(known, "b", "v5e:16x16", lambda name: True, False)[0]
    line = plans.train_line(row)
    assert line["memory a chip"] == "8.0 of 16 GiB" and line["roofline"] == "100 ms, MFU 40%" and line["bound by"] == "memory"
    assert line["a chip"] == "1" and line["cycles"] == "" and line["command"].endswith("--config.mesh.fsdp=1 --quick`")
    plans.train_rows(known, "b", "v5e:16x16", lambda name: True, True)
    assert asked == [(256, "dots", "data")] * 2
    row = plans.train_rows(plans.Plans(folder, False), "b", "v5e:16x16", lambda name: True, False)[0]
    assert not row["plan"]["quick"]


def test_tables_are_written_into_a_page(tmp_path, monkeypatch, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    fake(results, plans.train_options("b", 256, "v5e:16x16", "dots", "data"), True)
    fake(results, plans.sampling_options("b", 8), True, devices=1, images=8)
    page.write_text(f"before\n{plans.MARKS[0]}\nold\n{plans.MARKS[1]}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["plans", "--results", str(results), "--no-compile", "--into", str(page)])
    plans.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| B | 256 | 1 | data=256 | dots | 8.0 of 16 GiB | 100 ms, MFU 40% | memory |" in text
    assert "| B | 8 | 8.0 of 16 GiB | 1.25e+11 | 0 MiB | 12.5 ms, MFU 40% | memory |" in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="no part between"):
        plans.main()
