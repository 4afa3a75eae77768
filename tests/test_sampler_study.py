"""The rows of `benchmarks/sampler_study.py`, none drawn: they cover the options,
and are known again by their settings."""

import dataclasses
import json

import pytest

from benchmarks.sampler_study import ACROSS, TABLES, Row, name_of, settings_of, sheet_of, table_text
from maskgil_jax.config import DECODE_PRESETS, ORDERS, REMASK_RULES, SCHEDULES, DecodeConfig
from maskgil_jax.config.decoding import GUIDANCE_RAMPS

BASE = DecodeConfig(order="halton", guidance=4.0, temperature=0.9, choice_temperature=0.0)  # stored with the weights `emoji`
ROWS = {table: list(rows(BASE)) for table, rows in TABLES.items()}
RUN = dict(count=294, seed=0, weights={"generator": "ab12"})


def key(row, **run):
    return name_of(settings_of(row, **{**RUN, **run}))


def test_every_choice_has_a_row():
    assert set(DECODE_PRESETS.values()) <= {row.cfg for row in ROWS["presets"]}
    assert {row.cells["preset"] for row in ROWS["presets"]} == {"(stored)", *DECODE_PRESETS}
    assert {row.cfg.order for row in ROWS["orders"]} == set(ORDERS)
    assert {row.cfg.remask for row in ROWS["orders"]} == {None, *REMASK_RULES}
    assert {row.cfg.guidance_ramp for row in ROWS["guidance"]} == set(GUIDANCE_RAMPS)
    seen = {(row.cfg.order, row.cfg.plan, row.cfg.schedule, row.cfg.steps) for row in ROWS["steps"]}
    kinds = {("density", s) for s in SCHEDULES} | {(p, "arccos") for p in ("density", "gamma", "cumulative")}
    assert seen == {(o, *kind, t) for o in ("halton", "confidence") for kind in kinds for t in (4, 8, 16)}


@pytest.mark.parametrize("table", TABLES)
def test_no_two_rows_of_a_table_say_or_are_the_same(table):
    rows = ROWS[table]
    assert len({json.dumps(row.cells) for row in rows}) == len({key(row) for row in rows}) == len(rows)
    assert any(row.pictured for row in rows) and len({tuple(row.cells) for row in rows}) == 1
    assert ACROSS.get(table) is None or all(ACROSS[table] in row.cells for row in rows)


def test_a_row_is_drawn_once_for_all_tables_and_anew_when_anything_changes():
    base = Row({}, BASE)
    again = [row for rows in ROWS.values() for row in rows if key(row) == key(base)]
    assert len(again) >= 5  # in nearly every table the options stored with the weights are one of the rows
    changed = [
        *(base._replace(cfg=dataclasses.replace(BASE, **{name: value})) for name, value in dict(steps=9, top_k=5).items()),
        base._replace(ratio=0.25),
        base._replace(seed=1),
        base._replace(source="drawings"),
    ]
    others = [key(base, count=98), key(base, seed=7), key(base, weights={"generator": "cd34"})]
    assert len({key(base), *map(key, changed), *others}) == 1 + len(changed) + len(others)
    assert key(base._replace(seed=1), seed=6) == key(base, seed=7)  # a seed is a seed, however it was asked for
    assert key(base._replace(source="drawings")) == key(base._replace(source="drawings"), seed=7)  # nothing is drawn there


def test_a_dimension_can_lie_across():
    rows = [({"order": o, "steps": t}, {"agreement": t / 100, "frechet": 1.0}) for o, t in (("a", 8), ("b", 16), ("a", 16))]
    assert table_text(rows, "steps").splitlines() == [
        "| order | steps 8 | steps 16 |",
        "| --- | --- | --- |",
        "| a | 8.0% / 1.00 | 16.0% / 1.00 |",
        "| b |  | 16.0% / 1.00 |",
    ]
    assert table_text(rows[:1], None).splitlines()[::2] == [
        "| order | steps | agreement | Frechet distance |",
        "| a | 8 | 8.0% | 1.00 |",
    ]


def test_a_sheet_has_the_names_beside_the_pictures():
    import numpy as np

    strips = [np.full((20, 30, 3), value, np.uint8) for value in (10, 200)]
    sheet = sheet_of(strips, ["halton, 8", "raster"])
    left = sheet.shape[1] - 30
    assert sheet.shape[0] == 40 and (sheet[:20, left:] == 10).all() and (sheet[20:, left:] == 200).all()
    assert all((sheet[top : top + 20, :left] < 128).any() for top in (0, 20))
