"""Options and weights of the reference transformers, in this project's terms; the conversion tables know the names."""

import numpy as np

from helpers.recipe import draw
from maskgil_jax.config import BertConfig, LlamaConfig
from maskgil_jax.convert.engine import Foreign, foreign_tensors, import_arrays
from maskgil_jax.convert.families import FAMILIES
from maskgil_jax.networks import abstract_params, flatten, unflatten


def llama_config(hparams: dict, **changes) -> LlamaConfig:
    """The published MaskGIL layout for a golden case's hyper-parameters."""
    width = hparams["dim"]
    hidden = int(int(8 * width / 3) * hparams.get("ffn_dim_multiplier", 1.0))
    multiple = hparams.get("multiple_of", 256)
    options = dict(
        codebook_size=hparams["vocab_size"],
        num_classes=hparams["num_classes"],
        grid=(16, 16),
        width=width,
        depth=hparams["n_layer"],
        heads=hparams["n_head"],
        kv_heads=hparams.get("n_kv_head"),
        mlp_width=-(-hidden // multiple) * multiple,
        positions="1d_shifted",
        class_position="last",
        mask_logit=True,
        dropout=0.0,
    )
    return LlamaConfig(**(options | changes))


def llamagen_config(hparams: dict, grid: tuple[int, int], **changes) -> LlamaConfig:
    """LlamaGen's causal layout for a golden case's hyper-parameters: class- or text-conditional."""
    text = {"condition": "text", "text_tokens": hparams["cls_token_num"], "text_dim": hparams.get("caption_dim")}
    options = dict(grid=grid, positions="2d", class_position="first", mask_logit=False, causal=True)
    return llama_config(hparams, **options, **(text if hparams["model_type"] == "t2i" else {}), **changes)


def published_tensors(family: str, cfg) -> dict[str, Foreign]:
    """{PyTorch name: tensor} of a network with these options."""
    return foreign_tensors(FAMILIES[family].table(cfg), {n: tuple(p.shape) for n, p in flatten(abstract_params(cfg)).items()})


def published_params(family: str, cfg, get) -> dict:
    """`get(torch_name, torch_shape)` -> arrays, arranged as this project's parameters."""
    needed = published_tensors(family, cfg)
    return unflatten(import_arrays(needed, {name: np.asarray(get(name, t.shape)) for name, t in needed.items()}))


def bert_config(hparams: dict) -> BertConfig:
    side = hparams["img_size"] // 16
    return BertConfig(
        codebook_size=hparams["codebook_size"],
        num_classes=hparams["nclass"],
        grid=(side, side),
        width=hparams["hidden_dim"],
        depth=hparams["depth"],
        heads=hparams["heads"],
        mlp_width=hparams["mlp_dim"],
        mask_logit=True,
    )


def recipe_getter(config: dict):
    return lambda name, shape: draw(name, shape, config["recipe"])
