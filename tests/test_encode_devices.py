"""Encoding on several devices gives the codes of one, and a store notices changed captions."""

import jax
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.config import CaptionConfig, VQConfig
from maskgil_jax.data.sources.caption_files import open_caption_folder
from maskgil_jax.networks import create
from maskgil_jax.tokenizers.images import encoder_of

VQ = VQConfig(channels=4, multipliers=(1, 1, 1), res_blocks=1, latent_dim=4, codebook_size=32, codebook_dim=4, image_size=16)


@pytest.mark.slow
def test_codes_of_eight_devices_equal_those_of_one():
    assert len(jax.local_devices()) == 8
    tokenizer = create(VQ, jax.random.key(0))
    images_bhwc = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
    one = encoder_of(tokenizer, jax.local_devices()[:1])(images_bhwc)
    assert one.shape == (11, 4, 4) and len(np.unique(one)) > 1
    np.testing.assert_array_equal(encoder_of(tokenizer)(images_bhwc), one)


def test_content_changes_with_captions_of_its_images_only(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    before = open_caption_folder(tmp_path, CaptionConfig())
    (tmp_path / "3.txt").write_text("another text")
    after = open_caption_folder(tmp_path, CaptionConfig())
    assert after.content(0, 2) == before.content(0, 2)
    assert after.content(2, 4) != before.content(2, 4)
