"""Draws the edits in docs/results/shipped_weights.md with the shipped weights:
python benchmarks/edit_sheet.py OUT.png"""

import sys

import numpy as np

import maskgil_jax
from maskgil_jax.data.images import open_images
from maskgil_jax.files.images import contact_sheet, save_png

pipeline = maskgil_jax.load("demo")
drawings = open_images("emoji", split="test", label="subgroup")
records = [drawings[i] for i in range(0, len(drawings), 61)][:8]
real = np.stack([record["image"] for record in records])
kinds = [drawings.class_names[record["label"]] for record in records]
right = np.zeros(real.shape[1:3], bool)
right[:, 32:] = True
rows = (
    real,
    pipeline.vary(real, kinds, share=0.0),
    pipeline.inpaint(real, right, kinds),
    pipeline.edit_box(real, (16, 16, 48, 48), "hearts"),
    pipeline.vary(real, kinds, share=0.5),
)
save_png(sys.argv[1], contact_sheet(np.concatenate(rows), columns=len(real)))
