"""A pipeline folder in the layout of diffusers' aMUSEd: tiny random networks, real names of files and tensors."""

import dataclasses
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from helpers.amused_golden import TINY
from helpers.gpt_weights import published_tensors
from maskgil_jax.config import VQConfig
from maskgil_jax.config.encoders import CLIPTextConfig
from maskgil_jax.text_encoders.clip import text_table

WORDS = ("<|startoftext|>", "<|endoftext|>", "?", *"a red green blue cat dog sun hat".split())
TEXT = CLIPTextConfig(vocabulary=len(WORDS), positions=8, width=16, mlp_width=32, depth=3, heads=2, projection=16, end_id=2)
UVIT = dataclasses.replace(TINY, text_tokens=TEXT.positions, heads=4)
VQ = VQConfig(
    channels=16,
    multipliers=(1, 2),
    res_blocks=1,
    latent_dim=8,
    codebook_size=UVIT.codebook_size,
    codebook_dim=8,
    norm_groups=8,
    l2_normalize=False,
    attention_levels=(),
    middle_attention=False,
    image_size=16,
)
SIDE = 16  # pixels: 8 x 8 codes of 2 pixels


def _random(shapes: dict, seed: int, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (0.3 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def write_json(path: pathlib.Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def clip_tensors(dtype: str = "float32") -> dict[str, np.ndarray]:
    shapes = {name: shape for name, shape in text_table(TEXT).values()}
    return _random(shapes | {"text_projection.weight": (TEXT.projection, TEXT.width)}, 2, dtype)


def write_tokenizer(folder: pathlib.Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(WORDS[0], 0), (WORDS[1], 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{WORDS[0]} $A {WORDS[1]}", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"pad_token": WORDS[1], "model_max_length": TEXT.positions})


def write_folder(folder: pathlib.Path, *, variant: str = "", dtype: str = "float32") -> pathlib.Path:
    """variant: in the names of the weight files, such as ".fp16"."""
    write_json(folder / "model_index.json", {"_class_name": "AmusedPipeline", "vqvae": ["diffusers", "VQModel"]})
    write_json(folder / "transformer" / "config.json", UVIT_CONFIG)
    write_json(folder / "vqvae" / "config.json", {"_class_name": "VQModel", "norm_num_groups": 8, "num_vq_embeddings": 32})
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "text_encoder" / "config.json", TEXT_CONFIG)
    for part, family, cfg, seed in (("transformer", "amused", UVIT, 0), ("vqvae", "amused-vq", VQ, 1)):
        shapes = {name: tensor.shape for name, tensor in published_tensors(family, cfg).items()}
        save_file(_random(shapes, seed, dtype), folder / part / f"diffusion_pytorch_model{variant}.safetensors")
    save_file(clip_tensors(dtype), folder / "text_encoder" / f"model{variant}.safetensors")
    write_tokenizer(folder / "tokenizer")
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n")
    return folder


UVIT_CONFIG = {
    "_class_name": "UVit2DModel",
    "hidden_size": UVIT.width,
    "num_hidden_layers": UVIT.depth,
    "num_attention_heads": UVIT.heads,
    "block_num_heads": UVIT.block_heads,
    "intermediate_size": UVIT.mlp_width,
    "codebook_size": UVIT.codebook_size,
    "vocab_size": UVIT.vocabulary,
    "sample_size": UVIT.grid[0],
}
SCHEDULER = {"_class_name": "AmusedScheduler", "mask_token_id": UVIT.mask_id, "masking_schedule": "cosine"}
TEXT_CONFIG = {
    "model_type": "clip_text_model",
    "vocab_size": TEXT.vocabulary,
    "max_position_embeddings": TEXT.positions,
    "hidden_size": TEXT.width,
    "intermediate_size": TEXT.mlp_width,
    "num_hidden_layers": TEXT.depth,
    "num_attention_heads": TEXT.heads,
    "projection_dim": TEXT.projection,
    "hidden_act": "quick_gelu",
    "eos_token_id": TEXT.end_id,
    "pad_token_id": 1,
}
