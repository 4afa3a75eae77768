"""Published networks at full size, from a file to the reference's numbers (`full_size.py` also prints them as a
table)."""

import pytest
from helpers.full_size import gpt_b, vq16


@pytest.mark.slow
@pytest.mark.parametrize("run,least", [(lambda f: vq16(f, images=(0, 1)), 18), (gpt_b, 9)], ids=["vq16", "gpt_b"])
def test_converted_full_size_networks_give_the_published_numbers(run, least, tmp_path):
    rows = run(tmp_path)
    assert len(rows) >= least
    whole = {name: share for name, _, share in rows if "indices" in name or "argmax" in name}
    assert len(whole) == 2 and not any(whole.values()), whole
    assert all(share <= 1 for _, _, share in rows), rows
