"""Recipe weights of the reference transformers in this project's parameter tree (PyTorch names on the left)."""

import numpy as np
from recipe import draw

from maskgil_jax.config import BertConfig, LlamaConfig


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


def llama_tree(cfg: LlamaConfig, get) -> dict:
    """`get(torch_name, torch_shape)` -> arrays, arranged as `Llama`'s parameters. The joint table is split in two."""
    d, f = cfg.width, cfg.hidden
    kv = (cfg.kv_heads or cfg.heads) * cfg.head_dim
    layers = []
    for i in range(cfg.depth):
        name = f"layers.{i}."
        q, k, v = np.split(get(name + "attention.wqkv.weight", (d + 2 * kv, d)), [d, d + kv])
        attn = {"q": q, "k": k, "v": v, "o": get(name + "attention.wo.weight", (d, d))}
        mlp = {
            "gate": get(name + "feed_forward.w1.weight", (f, d)),
            "up": get(name + "feed_forward.w3.weight", (f, d)),
            "down": get(name + "feed_forward.w2.weight", (d, f)),
        }
        layers.append(
            {
                "attn": {n: {"kernel": w.T} for n, w in attn.items()},
                "mlp": {n: {"kernel": w.T} for n, w in mlp.items()},
                "attn_norm": {"scale": get(name + "attention_norm.weight", (d,))},
                "mlp_norm": {"scale": get(name + "ffn_norm.weight", (d,))},
            }
        )
    if cfg.causal:  # LlamaGen: two tables and no [MASK] row
        tokens = np.concatenate([get("tok_embeddings.weight", (cfg.codebook_size, d)), np.zeros((1, d), np.float32)])
        classes = get("cls_embedding.embedding_table.weight", (cfg.num_classes + 1, d))
    else:
        tokens, classes = np.split(get("tok_emb.weight", (cfg.codebook_size + cfg.num_classes + 2, d)), [cfg.codebook_size + 1])
    return {
        "tokens": {"embedding": tokens},
        "classes": {"embedding": classes},
        "layers": stack(layers),
        "norm": {"scale": get("norm.weight", (d,))},
        "head": {"kernel": get("output.weight", (cfg.codebook_size + cfg.mask_logit, d)).T},
    }


def stack(trees: list) -> dict:
    """List of equal trees -> one tree with a leading axis."""
    first = trees[0]
    return {k: stack([t[k] for t in trees]) for k in first} if isinstance(first, dict) else np.stack(trees)


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


def bert_tree(cfg: BertConfig, get) -> dict:
    d, f, count = cfg.width, cfg.mlp_width, cfg.grid[0] * cfg.grid[1] + 1
    rows = cfg.codebook_size + 1 + cfg.num_classes + 1

    def dense(name, out, into):
        return {"kernel": get(f"{name}.weight", (out, into)).T, "bias": get(f"{name}.bias", (out,))}

    def norm(name):
        return {"scale": get(f"{name}.weight", (d,)), "bias": get(f"{name}.bias", (d,))}

    layers = []
    for i in range(cfg.depth):
        name = f"transformer.layers.{i}."
        weights = np.split(get(name + "0.fn.mha.in_proj_weight", (3 * d, d)), 3)
        biases = np.split(get(name + "0.fn.mha.in_proj_bias", (3 * d,)), 3)
        attn = {n: {"kernel": w.T, "bias": b} for n, w, b in zip("qkv", weights, biases, strict=True)}
        attn["o"] = dense(name + "0.fn.mha.out_proj", d, d)
        mlp = {"up": dense(name + "1.fn.net.0", f, d), "down": dense(name + "1.fn.net.3", d, f)}
        layers.append({"attn": attn, "mlp": mlp, "attn_norm": norm(name + "0.norm"), "mlp_norm": norm(name + "1.norm")})
    tokens, classes = np.split(get("tok_emb.weight", (rows, d)), [cfg.codebook_size + 1])
    return {
        "tokens": {"embedding": tokens},
        "classes": {"embedding": classes},
        "positions": {"embedding": get("pos_emb", (1, count, d))[0]},
        "first_norm": norm("first_layer.0"),
        "first_up": dense("first_layer.2", d, d),
        "first_mid_norm": norm("first_layer.4"),
        "first_down": dense("first_layer.6", d, d),
        "layers": stack(layers),
        "last_norm": norm("last_layer.0"),
        "last_linear": dense("last_layer.2", d, d),
        "head_norm": norm("last_layer.4"),
        "head_bias": get("bias", (count, rows)),
    }


def recipe_getter(config: dict):
    return lambda name, shape: draw(name, shape, config["recipe"])
