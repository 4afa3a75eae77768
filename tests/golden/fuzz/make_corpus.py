"""Writes the corpus of the fuzz run: one small, sound file of every kind that is read from outside."""

import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from helpers.file_assembler import (  # noqa: E402
    about,
    args_of,
    legacy,
    mapping,
    message_array,
    npz,
    number,
    safetensors,
    tensor,
    text,
    torch_zip,
)

T5 = {
    "model_type": "t5",
    "vocab_size": 11,
    "d_model": 8,
    "d_ff": 8,
    "num_layers": 1,
    "num_heads": 2,
    "d_kv": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
}
CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "projection_dim": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 2,
}
GEMMA = {
    "model_type": "gemma2",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "sliding_window": 4,
    "query_pre_attn_scalar": 4,
    "attn_logit_softcapping": 50.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
BERT = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
UVIT = {
    "_class_name": "UVit2DModel",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "codebook_size": 16,
    "vocab_size": 20,
    "intermediate_size": 64,
    "block_num_heads": 2,
    "sample_size": 4,
}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, c in enumerate(("<pad>", "</s>"))
    ],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "</s>": 1, "red": 2, "cat": 3, "<unk>": 4}, "unk_token": "<unk>"},
}
YAML = (
    "model:\n  target: vqgan\n  params:\n    n_embed: 16\n    embed_dim: 4\n"
    "    ddconfig: &dd {ch: 8, ch_mult: [1, 2]}\n    again: *dd\n"
)


def files() -> dict[str, bytes]:
    """Name -> contents; the name's beginning is the target that reads it."""
    tree = mapping(
        model=mapping(**{"a.weight": tensor(), "b.weight": tensor((2, 2), (2, 1))}), epoch=number(3), args=args_of(x=text("y"))
    )
    configs = {"t5": T5, "clip": CLIP, "gemma": GEMMA, "bert": BERT}
    return {
        "weights-zip.pt": torch_zip(tree),
        "weights-legacy.pt": legacy(mapping(w=tensor())),
        "weights-safe.safetensors": safetensors({"v": about(), "__metadata__": {"format": "pt"}}),
        "weights-arrays.npz": npz(w=np.arange(6, dtype="<f4").reshape(2, 3), v=np.arange(3, dtype="<i8")),
        "weights-flax.msgpack": b"\x81\xa6params\x81\xa1w" + message_array(),
        "sidecar-model.yaml": YAML.encode(),
        "sidecar-diffusers.json": json.dumps(UVIT).encode(),
        "tokenizer-words.json": json.dumps(TOKENIZER).encode(),
        **{f"encoder-{name}.json": json.dumps(values).encode() for name, values in configs.items()},
    }


if __name__ == "__main__":
    for name, raw in files().items():
        (HERE / name).write_bytes(raw)
