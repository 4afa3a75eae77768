"""Several captioned sources as one."""

import numpy as np
import pytest

from maskgil_jax.data.caption_sets import open_captions


def test_joined_sources_hold_each_as_often_as_asked():
    joined, drawings = open_captions("emoji*2, scenes:5"), open_captions("emoji")
    count = len(drawings)
    assert len(joined) == 2 * count + 5 and joined.name == "emoji-captions/train/64*2,scenes/train/5/0"
    for i in (0, count - 1):
        assert joined.captions(i) == joined.captions(count + i) == drawings.captions(i)
    np.testing.assert_array_equal(joined[2 * count + 4]["image"], open_captions("scenes:5")[4]["image"])
    with pytest.raises(IndexError):
        joined[2 * count + 5]
    with pytest.raises(ValueError, match="expected scenes:COUNT"):
        open_captions("emoji,scenes:many")
