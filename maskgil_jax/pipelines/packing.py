"""Pipeline folders with smaller weights, to be shared."""

from __future__ import annotations

from maskgil_jax.checkpoints.weights import extra, load_weights, save_weights
from maskgil_jax.pipelines.pipeline import load


def pack(path, out, dtype: str = "float16") -> None:
    """Writes the pipeline folder `path` to `out`, smaller: to be shared.

    dtype: of the generator, "float16" or "int8". The tokenizer is written in float16, and its hash is recorded anew.
    """
    load(path)  # refuses a folder whose parts do not fit together
    tokenizer, generator = load_weights(path, "tokenizer"), load_weights(path, "generator")
    save_weights(f"{out}/tokenizer", tokenizer.cfg, tokenizer.params, metadata=extra(tokenizer.about), dtype="float16")
    about = {**extra(generator.about), "tokenizer_hash": load_weights(out, "tokenizer").hash}
    save_weights(f"{out}/generator", generator.cfg, generator.params, metadata=about, dtype=dtype)
