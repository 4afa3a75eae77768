"""Masked decoding in PyTorch, written for `python -m benchmarks.decode --torch`: what this package is measured against.

Two forms of one sampler, token to pixel, in float32 and with the weights of the JAX networks:

`eager`: as published loops do it. A Python loop over the steps, the plan and the confidence noise as NumPy arrays on
the host, both branches of guidance in one batch of 2b, logits at every position in each step, `torch.multinomial`, a
check by `.item()` whether anything is left.
`compiled`: one step as one graph of `torch.compile` (frozen weights), another graph for the pixels; the host only
starts them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch._inductor.config as inductor
from torch import nn
from torch.nn import functional as F

from maskgil_jax.config import DecodeConfig, LlamaConfig, VQConfig
from maskgil_jax.decoding.guidance import guidance_scales, progress
from maskgil_jax.decoding.schedules import reveal_counts
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.rope import rotation_table
from maskgil_jax.networks import params_of

# Logits of order 1 and pixels of order 1, both sums of a few thousand float32 products in another order: about 1e-5 is
# seen.
TOLERANCE = 2e-4


def _tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _linear(kernel_io) -> nn.Linear:
    layer = nn.Linear(*kernel_io.shape, bias=False, device="meta")
    layer.weight = nn.Parameter(_tensor(kernel_io).T.contiguous())
    return layer


class RMSNorm(nn.Module):
    """x / rms(x) * scale."""

    def __init__(self, scale_d, eps: float):
        super().__init__()
        self.eps, self.scale = eps, nn.Parameter(_tensor(scale_d))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.scale


class Block(nn.Module):
    """Pre-norm attention with rotary positions, then SwiGLU."""

    def __init__(self, params: dict, cfg: LlamaConfig):
        super().__init__()
        self.heads = cfg.heads
        self.attn_norm, self.mlp_norm = (RMSNorm(params[n]["scale"], cfg.norm_eps) for n in ("attn_norm", "mlp_norm"))
        self.q, self.k, self.v, self.o = (_linear(params["attn"][n]["kernel"]) for n in "qkvo")
        self.gate, self.up, self.down = (_linear(params["mlp"][n]["kernel"]) for n in ("gate", "up", "down"))

    def forward(self, x_bld, cos_lk, sin_lk, rate: float = 0.0):
        """`rate`: of dropout on the outputs of attention and MLP."""
        b, l, d = x_bld.shape
        y_bld = self.attn_norm(x_bld)
        q, k, v = (f(y_bld).view(b, l, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = _rotate(q, cos_lk, sin_lk), _rotate(k, cos_lk, sin_lk)
        out_bld = self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, l, d))
        x_bld = x_bld + F.dropout(out_bld, rate, rate > 0)
        y_bld = self.mlp_norm(x_bld)
        return x_bld + F.dropout(self.down(F.silu(self.gate(y_bld)) * self.up(y_bld)), rate, rate > 0)


def _rotate(x_bhlk, cos_lk, sin_lk):
    even, odd = x_bhlk.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos_lk - odd * sin_lk, odd * cos_lk + even * sin_lk), dim=-1).flatten(-2)


class Llama(nn.Module):
    """`models.llama.Llama` with the weights of a network that has the default layout (any of `LLAMA_PRESETS` but
    XXL)."""

    def __init__(self, generator):
        super().__init__()
        cfg, params = generator.cfg, params_of(generator)
        plain = (cfg.condition, cfg.positions, cfg.class_position, cfg.qk_norm, cfg.post_norm, cfg.kv_heads, cfg.causal)
        if plain != ("class", "2d", "first", "none", "none", None, False):
            raise ValueError(f"generator: the PyTorch twin has the default layout only, got {cfg}")
        self.cfg = cfg
        self.tokens, self.classes = (
            nn.Embedding.from_pretrained(_tensor(params[n]["embedding"])) for n in ("tokens", "classes")
        )
        layers = params["layers"]
        self.layers = nn.ModuleList(Block(_row(layers, i), cfg) for i in range(cfg.depth))
        self.norm, self.head = RMSNorm(params["norm"]["scale"], cfg.norm_eps), _linear(params["head"]["kernel"])
        rules = dict(positions=cfg.positions, prefix=1, prefix_rotation=cfg.prefix_rotation, class_position="first")
        if cfg.patch > 1:
            self.expand = _linear(params["expand"]["kernel"])
            self.expand_norm = RMSNorm(params["expand_norm"]["scale"], cfg.norm_eps)
        self.sides = tuple(side // cfg.patch for side in cfg.grid)
        cos_lk, sin_lk = rotation_table(self.sides, cfg.head_dim, cfg.rope_base, **rules)
        self.register_buffer("cos", _tensor(cos_lk))
        self.register_buffer("sin", _tensor(sin_lk))

    def forward(self, tokens_bl, label_b, rate: float = 0.0):
        """`rate`: of dropout, in training."""
        x_bld, patch, (rows, columns) = self.tokens(tokens_bl), self.cfg.patch, self.sides
        if patch > 1:
            x_bld = x_bld.view(-1, rows, patch, columns, patch, x_bld.shape[-1]).transpose(2, 3).flatten(3).flatten(1, 2)
        x_bld = torch.cat([self.classes(label_b)[:, None], x_bld], dim=1)
        for layer in self.layers:
            x_bld = layer(x_bld, self.cos, self.sin, rate)
        x_bld = self.norm(x_bld[:, 1:])
        if patch > 1:
            x_brcpqd = self.expand(x_bld).view(-1, rows, columns, patch, patch, self.cfg.state_width)
            x_bld = self.expand_norm(x_brcpqd.transpose(2, 3).flatten(1, 4))
        return self.head(x_bld)[..., : self.cfg.codebook_size]


def _row(tree: dict, i: int) -> dict:
    return {name: _row(leaf, i) if isinstance(leaf, dict) else leaf[i] for name, leaf in tree.items()}


def _conv(params: dict) -> nn.Conv2d:
    kernel = _tensor(params["kernel"]).permute(3, 2, 0, 1).contiguous()
    conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding="same", device="meta")
    conv.weight, conv.bias = nn.Parameter(kernel), nn.Parameter(_tensor(params["bias"]))
    return conv


def _norm(params: dict, groups: int) -> nn.GroupNorm:
    channels = len(params["scale"])
    norm = nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-6)
    norm.weight, norm.bias = nn.Parameter(_tensor(params["scale"])), nn.Parameter(_tensor(params["bias"]))
    return norm


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity."""

    def __init__(self, params: dict, groups: int):
        super().__init__()
        self.norm1, self.norm2 = _norm(params["norm1"], groups), _norm(params["norm2"], groups)
        self.conv1, self.conv2 = _conv(params["conv1"]), _conv(params["conv2"])
        self.shortcut = _conv(params["shortcut"]) if params.get("shortcut") else nn.Identity()

    def forward(self, x_bchw):
        return self.shortcut(x_bchw) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x_bchw))))))


class Attention(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, params: dict, groups: int):
        super().__init__()
        self.norm = _norm(params["norm"], groups)
        self.q, self.k, self.v, self.out = (_conv(params[n]) for n in ("q", "k", "v", "out"))

    def forward(self, x_bchw):
        y_bchw = self.norm(x_bchw)
        q, k, v = (f(y_bchw).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        y_blc = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x_bchw + self.out(y_blc.transpose(1, 2).reshape(x_bchw.shape))


class Pixels(nn.Module):
    """Codes (b, h, w) -> images (b, 3, H, W): the decoder of `tokenizers.vqgan.VQGAN`."""

    def __init__(self, tokenizer):
        super().__init__()
        cfg, params = tokenizer.cfg, params_of(tokenizer)
        if not isinstance(cfg, VQConfig):
            raise ValueError(f"tokenizer: the PyTorch twin is a VQ-GAN, got {type(cfg).__name__}")
        self.codes = nn.Embedding.from_pretrained(_tensor(tokenizer.codebook.vectors()))
        decoder, groups, parts = params["decoder"], cfg.norm_groups, [_conv(params["post_quant_conv"])]
        parts.append(_conv(decoder["conv_in"]))
        middle = decoder["mid"]
        parts += [ResBlock(middle["res1"], groups), Attention(middle["attn"], groups), ResBlock(middle["res2"], groups)]
        for name in sorted(decoder["levels"], key=int):
            level = decoder["levels"][name]
            for j in sorted(level["res"], key=int):
                parts.append(ResBlock(level["res"][j], groups))
                if j in level.get("attn", {}):
                    parts.append(Attention(level["attn"][j], groups))
            if name in decoder.get("upsample", {}):
                parts += [nn.Upsample(scale_factor=2, mode="nearest"), _conv(decoder["upsample"][name])]
        self.parts = nn.Sequential(*parts, _norm(decoder["norm_out"], groups), nn.SiLU(), _conv(decoder["conv_out"]))

    def forward(self, codes_bhw):
        return self.parts(self.codes(codes_bhw).permute(0, 3, 1, 2))


def _guided(network: Llama, tokens_bl, label_b, scale: float):
    """Logits (b, l, v): with guidance both branches share a batch of 2b."""
    if scale == 1.0:
        return network(tokens_bl, label_b)
    null_b = torch.full_like(label_b, network.cfg.num_classes)
    cond, uncond = network(tokens_bl.repeat(2, 1), torch.cat([label_b, null_b])).chunk(2)
    return uncond + scale * (cond - uncond)


class Step(nn.Module):
    """One step as one graph: canvas, labels, weight of the noise and the number of tokens to reveal in, canvas out."""

    def __init__(self, network: Llama, temperature: float):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, tokens_bl, label_b, scale: float, noise, count):
        masked_bl = tokens_bl == self.network.cfg.mask_id
        probs_blv = torch.softmax(_guided(self.network, tokens_bl, label_b, scale) / self.temperature, dim=-1)
        # The likeliest after exponential noise: one sample per position, without leaving the graph.
        picks_bl = (probs_blv / torch.empty_like(probs_blv).exponential_()).argmax(-1)
        score_bl = probs_blv.gather(-1, picks_bl[..., None])[..., 0].log()
        score_bl = score_bl - noise * torch.log(torch.empty_like(score_bl).exponential_())
        score_bl = torch.where(masked_bl, score_bl, -math.inf)
        least_b1 = score_bl.sort(dim=-1, descending=True).values.index_select(1, count[None] - 1)
        return torch.where(masked_bl & (score_bl >= least_b1), picks_bl, tokens_bl)


class Sampler:
    """`sampler(label_b)` -> images (b, 3, H, W), by plan, noise and guidance of `cfg`, in the confidence order."""

    def __init__(self, network: Llama, pixels: Pixels, cfg: DecodeConfig, compiled: bool):
        self.network, self.pixels, self.cfg, self.compiled = network, pixels, cfg, compiled
        self.counts = reveal_counts(cfg.plan, cfg.schedule, cfg.steps, math.prod(network.cfg.grid))
        self.scales, self.noise = guidance_scales(cfg).tolist(), cfg.choice_temperature * (1 - progress(cfg.steps))
        if compiled:
            self.pixels = torch.compile(pixels, dynamic=False)
            self.step = torch.compile(Step(network, cfg.temperature), dynamic=False)

    def __call__(self, label_b):
        with torch.inference_mode():
            tokens_bl = torch.full((len(label_b), math.prod(self.network.cfg.grid)), self.network.cfg.mask_id)
            tokens_bl = (self._compiled if self.compiled else self._eager)(tokens_bl, label_b)
            return self.pixels(tokens_bl.view(-1, *self.network.cfg.grid))

    def _eager(self, tokens_bl, label_b):
        for i in range(self.cfg.steps):
            masked_bl = tokens_bl == self.network.cfg.mask_id
            if masked_bl.sum().item() == 0:
                break
            logits_blv = _guided(self.network, tokens_bl, label_b, self.scales[i])
            probs_blv = torch.softmax(logits_blv / self.cfg.temperature, dim=-1)
            picks_bl = torch.multinomial(probs_blv.flatten(0, 1), 1).view_as(tokens_bl)
            score_bl = probs_blv.gather(-1, picks_bl[..., None])[..., 0].log()
            score_bl += torch.from_numpy(self.noise[i] * np.random.gumbel(size=score_bl.shape)).float()
            score_bl[~masked_bl] = -math.inf
            least_b1 = score_bl.topk(int(self.counts[i]), dim=-1).values[:, -1:]
            shown_bl = masked_bl & (score_bl >= least_b1)
            tokens_bl[shown_bl] = picks_bl[shown_bl]
        return tokens_bl

    def _compiled(self, tokens_bl, label_b):
        for i in range(self.cfg.steps):
            tokens_bl = self.step(
                tokens_bl, label_b, self.scales[i], torch.tensor(float(self.noise[i])), torch.tensor(int(self.counts[i]))
            )
        return tokens_bl


def check(network: Llama, pixels: Pixels, generator, tokenizer) -> None:
    """Raises AssertionError unless logits and image agree with the JAX networks to `TOLERANCE`."""
    cfg, rng = generator.cfg, np.random.default_rng(0)
    tokens_bl = rng.integers(0, cfg.codebook_size + 1, (2, math.prod(cfg.grid)), np.int32)
    label_b = np.array([0, cfg.num_classes], np.int32)
    codes_bhw = tokens_bl.reshape(-1, *cfg.grid) % cfg.codebook_size
    logits_blv = jax.jit(lambda network: network(tokens_bl, ClassCondition(jnp.asarray(label_b))))(generator)
    images_bhwc = jax.jit(lambda network: network.decode(jnp.asarray(codes_bhw)))(tokenizer)
    with torch.inference_mode():
        twin_blv = network(torch.from_numpy(tokens_bl).long(), torch.from_numpy(label_b).long())
        twin_bhwc = pixels(torch.from_numpy(codes_bhw).long()).permute(0, 2, 3, 1)
    for ours, theirs in ((logits_blv, twin_blv), (images_bhwc, twin_bhwc)):
        np.testing.assert_allclose(theirs.numpy(), np.asarray(ours), rtol=0, atol=TOLERANCE)


def forms(generator, tokenizer, label_b: np.ndarray, cfg: DecodeConfig) -> dict[str, Callable]:
    """{name: a call without arguments that makes the images} of both forms; prints what they run on.

    If `torch.compile` does not work here, it says why and leaves that form out.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA's CPU client takes
    network, pixels = Llama(generator).eval(), Pixels(tokenizer).eval()
    check(network, pixels, generator, tokenizer)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; logits and images agree to {TOLERANCE:g}")
    labels = torch.tensor(label_b.tolist())
    eager, compiled = (Sampler(network, pixels, cfg, compiled) for compiled in (False, True))
    calls: dict[str, Callable] = {"PyTorch, eager": lambda: eager(labels)}
    inductor.freezing = True  # weights as constants, laid out for the products: the fastest that it has
    try:
        compiled(labels)
    except Exception as error:  # no C++ compiler, an unsupported Python: whatever it is, the rest can be measured
        print(f"torch.compile does not work here: {type(error).__name__}: {str(error).splitlines()[0]}")
    else:
        calls["PyTorch, compiled"] = lambda: compiled(labels)
    return calls
