"""Peak memory of converting a whole diffusers folder of aMUSEd-512 in float32 (the real names and shapes;
values are zero).

python -m benchmarks.convert_memory [--folder DIR] [--layers 36]

The files are sparse, so the folder takes no space before its conversion. The conversion runs in a process of its own,
whose largest resident size the system reports; pages of the mapped source files count too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from maskgil_jax.config import UVIT_PRESETS, VQConfig
from maskgil_jax.config.encoders import CLIPTextConfig
from maskgil_jax.convert.engine import foreign_tensors
from maskgil_jax.convert.families import FAMILIES
from maskgil_jax.networks import abstract_params, flatten
from maskgil_jax.text_encoders.clip import text_table

UVIT = UVIT_PRESETS["512"]
TEXT = CLIPTextConfig(width=768, mlp_width=3072, heads=12, projection=768)  # of CLIP ViT-L/14
VQ = VQConfig(
    channels=128,
    multipliers=(1, 2, 2, 4, 6),
    res_blocks=2,
    latent_dim=64,
    codebook_size=8192,
    codebook_dim=64,
    l2_normalize=False,
    attention_levels=(),
    middle_attention=False,
    image_size=512,
)
CHILD = "import sys; from maskgil_jax.convert.diffusers_folder import convert_folder; convert_folder(*sys.argv[1:3])"


def write_sparse(path: pathlib.Path, shapes: dict) -> int:
    """A safetensors file of float32 zeros that takes no space. Returns its size."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def write_folder(folder: pathlib.Path, layers: int = UVIT.depth) -> int:
    """The whole pipeline folder, its U-ViT with this number of layers. Returns the bytes of its weights."""
    sizes, uvit = 0, dataclasses.replace(UVIT, depth=layers)
    for part, family, cfg in (("transformer", "amused", uvit), ("vqvae", "amused-vq", VQ)):
        leaves = {name: tuple(leaf.shape) for name, leaf in flatten(abstract_params(cfg)).items()}
        shapes = {name: tensor.shape for name, tensor in foreign_tensors(FAMILIES[family].table(cfg), leaves).items()}
        sizes += write_sparse(folder / part / "diffusion_pytorch_model.safetensors", shapes)
    shapes = dict(text_table(TEXT).values()) | {"text_projection.weight": (TEXT.projection, TEXT.width)}
    sizes += write_sparse(folder / "text_encoder" / "model.safetensors", shapes)
    configs = {
        "model_index.json": {"_class_name": "AmusedPipeline"},
        "transformer/config.json": {"_class_name": "UVit2DModel", "sample_size": 32, "num_hidden_layers": layers},
        "vqvae/config.json": {"_class_name": "VQModel"},
        "scheduler/scheduler_config.json": {"_class_name": "AmusedScheduler", "mask_token_id": 8255},
        "text_encoder/config.json": {
            "model_type": "clip_text_model",
            "projection_dim": TEXT.projection,
            "hidden_size": TEXT.width,
            "intermediate_size": TEXT.mlp_width,
            "num_attention_heads": TEXT.heads,
        },
        "tokenizer/tokenizer.json": {},
    }
    for name, values in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    return sizes


def main() -> None:
    """Measures and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the conversion is written (default: a temporary folder)")
    parser.add_argument("--layers", type=int, default=UVIT.depth, help="of the U-ViT (default: %(default)s, aMUSEd's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        size = write_folder(pathlib.Path(root, "source"), args.layers)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", CHILD, f"{root}/source", f"{root}/out"], check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{size / 1e9:.2f} GB of weights converted in {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
