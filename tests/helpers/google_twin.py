"""Google's MaskGIT once more, in plain NumPy on the arrays of a published file under their published names.

No outputs of the original code are at hand for these two networks, so this is what they are compared with: written from
the published description alone, without the package, in whatever type the arrays have (float64 shows what is rounding).
"""

import math
import zlib

import numpy as np

TOKENIZER = {"channels": 128, "multipliers": (1, 1, 2, 2, 4), "res_blocks": 2, "codebook": (1024, 256)}
TRANSFORMER = {"rows": 2025, "places": 257, "width": 768, "heads": 16, "mlp": 3072, "depth": 24}


# ------------------------------------------------------------------------------------------------ names and shapes
def tokenizer_shapes(channels, multipliers, res_blocks, codebook) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a tokenizer's file."""
    shapes: dict[str, tuple[int, ...]] = {"quantizer/codebook": codebook}

    def module(name, **arrays):
        shapes.update({f"{name}/{leaf}": shape for leaf, shape in arrays.items()})

    def blocks(side, width, widths):
        for n, out in enumerate(out for out in widths for _ in range(res_blocks)):
            block = f"{side}/ResBlock_{n}"
            module(f"{block}/GroupNorm_0", scale=(width,), bias=(width,))
            module(f"{block}/Conv_0", kernel=(3, 3, width, out))
            module(f"{block}/GroupNorm_1", scale=(out,), bias=(out,))
            module(f"{block}/Conv_1", kernel=(3, 3, out, out))
            if width != out:
                module(f"{block}/Conv_2", kernel=(1, 1, out, out))
            width = out
        module(f"{side}/GroupNorm_0", scale=(width,), bias=(width,))

    widths = [channels * m for m in multipliers]
    low, latent = widths[-1], codebook[1]
    module("encoder/Conv_0", kernel=(3, 3, 3, channels))
    blocks("encoder", channels, [*widths, low])
    module("encoder/Conv_1", kernel=(1, 1, low, latent), bias=(latent,))
    module("decoder/Conv_0", kernel=(3, 3, latent, low), bias=(low,))
    blocks("decoder", low, [low, *widths[::-1]])
    for n, width in enumerate(widths[:0:-1]):
        module(f"decoder/Conv_{n + 1}", kernel=(3, 3, width, width), bias=(width,))
    module(f"decoder/Conv_{len(widths)}", kernel=(3, 3, channels * multipliers[0], 3), bias=(3,))
    return shapes


def transformer_shapes(rows, places, width, heads, mlp, depth) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a Transformer's file."""
    d, h, k = width, heads, width // heads
    shapes = {
        "Embed_0/word_embeddings/embedding": (rows, d),
        "Embed_0/position_embeddings/embedding": (places, d),
        "MlmLayer_0/mlm_dense/kernel": (d, d),
        "MlmLayer_0/mlm_dense/bias": (d,),
        "MlmLayer_0/mlm_bias/bias": (rows,),
    }
    norms = ["Embed_0/embeddings_ln", "MlmLayer_0/mlm_ln"]
    for n in range(depth):
        layer = f"TransformerLayer_{n}"
        for name in ("query", "key", "value"):
            shapes[f"{layer}/Attention_0/self_attention/{name}/kernel"] = (d, h, k)
            shapes[f"{layer}/Attention_0/self_attention/{name}/bias"] = (h, k)
        shapes |= {
            f"{layer}/Attention_0/self_attention/out/kernel": (h, k, d),
            f"{layer}/Attention_0/self_attention/out/bias": (d,),
            f"{layer}/Mlp_0/intermediate_output/kernel": (d, mlp),
            f"{layer}/Mlp_0/intermediate_output/bias": (mlp,),
            f"{layer}/Mlp_0/layer_output/kernel": (mlp, d),
            f"{layer}/Mlp_0/layer_output/bias": (d,),
        }
        norms += [f"{layer}/Attention_0/attention_output_ln", f"{layer}/Mlp_0/layer_output_ln"]
    return shapes | {f"{norm}/{leaf}": (d,) for norm in norms for leaf in ("scale", "bias")}


def draw(shapes: dict) -> dict[str, np.ndarray]:
    """An array for each name, drawn from it; small embeddings, so that the first norm's epsilon shows."""
    state = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        leaf = name.rsplit("/", 1)[1]
        if leaf == "kernel":
            x /= math.sqrt(math.prod(shape[:-1]) if "self_attention" not in name else (shape[0] * shape[1]) ** 0.5)
        elif leaf != "codebook":
            x = 0.1 * x + (leaf == "scale")
        state[name] = x.astype(np.float32)
    return state


def under(state: dict, prefix: str) -> dict:
    """The arrays below `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix + "/"): array for name, array in state.items() if name.startswith(prefix + "/")}


# ------------------------------------------------------------------------------------------------ tokenizer
def silu(x):
    return x / (1 + np.exp(-x))


def conv(p, x):
    """Stride 1, padded with zeros to the same size; the kernel is (h, w, in, out)."""
    size = p["kernel"].shape[0]
    x = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    y = sum(x[:, i : i + h, j : j + w] @ p["kernel"][i, j] for i in range(size) for j in range(size))
    return y + p.get("bias", 0)


def group_norm(p, x, groups=32):
    b, h, w, c = x.shape
    parts = x.reshape(b, h, w, groups, c // groups)
    mean, var = parts.mean((1, 2, 4), keepdims=True), parts.var((1, 2, 4), keepdims=True)
    return ((parts - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def res_block(p, x):
    y = conv(under(p, "Conv_0"), silu(group_norm(under(p, "GroupNorm_0"), x)))
    y = conv(under(p, "Conv_1"), silu(group_norm(under(p, "GroupNorm_1"), y)))
    return y + (conv(under(p, "Conv_2"), y) if "Conv_2/kernel" in p else x)  # the output, not the input


def latents(state, images, levels, res_blocks):
    """Images in [-1, 1] -> latents: the network wants [0, 1]."""
    p = under(state, "encoder")
    x = conv(under(p, "Conv_0"), (images + 1) / 2)
    for n in range((levels + 1) * res_blocks):
        x = res_block(under(p, f"ResBlock_{n}"), x)
        if n % res_blocks == res_blocks - 1 and n // res_blocks < levels - 1:
            x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return conv(under(p, "Conv_1"), silu(group_norm(under(p, "GroupNorm_0"), x)))


def distances(state, z):
    """Squared distance of each latent to each code."""
    return np.square(z[..., None, :] - state["quantizer/codebook"]).sum(-1)


def decode(state, codes, levels, res_blocks):
    """Codes -> images in [-1, 1]."""
    p = under(state, "decoder")
    x = conv(under(p, "Conv_0"), state["quantizer/codebook"][codes])
    for n in range((levels + 1) * res_blocks):
        x = res_block(under(p, f"ResBlock_{n}"), x)
        level = n // res_blocks  # 0 is the middle, 1 the lowest resolution
        if n % res_blocks == res_blocks - 1 and 1 <= level < levels:
            x = conv(under(p, f"Conv_{level}"), x.repeat(2, axis=1).repeat(2, axis=2))
    return 2 * conv(under(p, f"Conv_{levels}"), silu(group_norm(under(p, "GroupNorm_0"), x))) - 1


# ------------------------------------------------------------------------------------------------ transformer
def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + x.dtype.type(1e-12)) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def attention(p, x):
    q, k, v = (np.einsum("bld,dhk->bhlk", x, p[f"{n}/kernel"]) + p[f"{n}/bias"][:, None] for n in ("query", "key", "value"))
    scores = np.einsum("bhlk,bhmk->bhlm", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhlm,bhmk->blhk", weights / weights.sum(-1, keepdims=True), v)
    return np.einsum("blhk,hkd->bld", mixed, p["out/kernel"]) + p["out/bias"]


def logits(state, tokens, labels, codebook_size, depth):
    """Scores of the codes for tokens that are -1 where masked; the class goes first."""
    table = state["Embed_0/word_embeddings/embedding"]
    ids = np.concatenate([codebook_size + labels[:, None], tokens], axis=1)
    x = table[ids] + state["Embed_0/position_embeddings/embedding"][: ids.shape[1]]  # -1 is the last row
    x = layer_norm(under(state, "Embed_0/embeddings_ln"), x)
    for n in range(depth):
        p = under(state, f"TransformerLayer_{n}")
        x = layer_norm(under(p, "Attention_0/attention_output_ln"), x + attention(under(p, "Attention_0/self_attention"), x))
        y = dense(under(p, "Mlp_0/layer_output"), gelu(dense(under(p, "Mlp_0/intermediate_output"), x)))
        x = layer_norm(under(p, "Mlp_0/layer_output_ln"), x + y)
    x = layer_norm(under(state, "MlmLayer_0/mlm_ln"), gelu(dense(under(state, "MlmLayer_0/mlm_dense"), x)))
    return (x @ table.T + state["MlmLayer_0/mlm_bias/bias"])[:, 1:, :codebook_size]
