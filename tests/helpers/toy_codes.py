"""A small image source, a toy tokenizer for it, and `encode`, which makes a code store of them."""

import json

import numpy as np

from maskgil_jax.data import transforms as crops
from maskgil_jax.data.code_store import encode_dataset


class Pictures:
    """25 images of 20 x 16, each filled with codes we can foresee."""

    name, class_names = "pictures", ("one", "two", "trois é")

    def __len__(self):
        return 25

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(0, 256, (20, 16, 3), np.uint8)
        return {"image": image, "label": i % 3, "id": f"ü/{i}.png"}


def toy_encode(images_bhwc, codebook_size=1024):
    """8 x 8 means of the pixels, spread over the codebook: (b, 16, 16, 3) -> (b, 2, 2)."""
    assert images_bhwc.shape == (4, 16, 16, 3) and images_bhwc.dtype == np.uint8
    sums = images_bhwc.astype(np.int64).reshape(4, 2, 8, 2, 8, 3).sum((2, 4, 5))
    return (sums * 7919) % codebook_size


SETTINGS = {
    "tokenizer_hash": "aaaa",
    "grid": (2, 2),
    "codebook_size": 1024,
    "size": 16,
    "batch_size": 4,
    "shard_size": 10,
}


def encode(out, encode_fn=toy_encode, **changes):
    return encode_dataset(encode_fn, Pictures(), out, **{**SETTINGS, **changes}, progress=False)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def expected_codes(i, codebook_size=1024):
    image = crops.adm_center_crop(Pictures()[i]["image"], 16)
    return toy_encode(np.repeat(image[None], 4, 0), codebook_size)[0]


def damage_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
