"""Training steps in PyTorch, written for `python -m benchmarks.train --torch`: what this package is measured against.

The same networks with the weights of the JAX ones, the same losses, clipping, AdamW (fused) and weight average, in
float32. `eager` is plain PyTorch, `compiled` has forward and backward in one graph of `torch.compile`. Two things are
left out that the JAX steps do: metrics, and the restart of unused codes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_decode import Attention, Llama, Pixels, ResBlock, _conv, _norm, _tensor
from maskgil_jax import networks as network
from maskgil_jax.models.condition import ClassCondition

TOLERANCE = 1e-4  # of losses, which are sums of float32 products in another order


def _trainable(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return module.train()


class Halving(nn.Module):
    """A 3x3 convolution of every other pixel, with one pixel of padding on the right and at the bottom."""

    def __init__(self, params: dict):
        super().__init__()
        conv = _conv(params)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x_bchw):
        return F.conv2d(F.pad(x_bchw, (0, 1, 0, 1)), self.weight, self.bias, stride=2)


class Patches(nn.Module):
    """Patches of pixels folded into the channels, or back; row and column inside the patch before the channel."""

    def __init__(self, patch: int, fold: bool):
        super().__init__()
        self.patch, self.fold = patch, fold

    def forward(self, x_bchw):
        (b, c, h, w), p = x_bchw.shape, self.patch
        if self.fold:
            return x_bchw.view(b, c, h // p, p, w // p, p).permute(0, 3, 5, 1, 2, 4).reshape(b, c * p * p, h // p, w // p)
        return x_bchw.view(b, p, p, c // p**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // p**2, h * p, w * p)


class Tokenizer(nn.Module):
    """`tokenizers.vqgan.VQGAN` and the terms of its loss that need no other network."""

    def __init__(self, tokenizer, loss_cfg):
        super().__init__()
        cfg, params, self.loss = tokenizer.cfg, network.params_of(tokenizer), loss_cfg
        encoder, groups, parts = params["encoder"], cfg.norm_groups, [_conv(params["encoder"]["conv_in"])]
        for name in sorted(encoder["levels"], key=int):
            level = encoder["levels"][name]
            for j in sorted(level["res"], key=int):
                parts.append(ResBlock(level["res"][j], groups))
                if j in level.get("attn", {}):
                    parts.append(Attention(level["attn"][j], groups))
            if name in encoder.get("downsample", {}):
                parts.append(Halving(encoder["downsample"][name]))
        middle = encoder["mid"]
        parts += [ResBlock(middle["res1"], groups), Attention(middle["attn"], groups), ResBlock(middle["res2"], groups)]
        parts += [_norm(encoder["norm_out"], groups), nn.SiLU(), _conv(encoder["conv_out"]), _conv(params["quant_conv"])]
        self.encoder = nn.Sequential(Patches(cfg.patch, True), *parts)
        self.decoder = nn.Sequential(Pixels(tokenizer).parts, Patches(cfg.patch, False))
        self.codes = nn.Parameter(_tensor(params["codebook"]["embedding"]))
        self.unit = cfg.l2_normalize

    def forward(self, images_bchw):
        z_bhwd, codes_kd = self.encoder(images_bchw).permute(0, 2, 3, 1), self.codes
        if self.unit:
            z_bhwd, codes_kd = F.normalize(z_bhwd, dim=-1), F.normalize(codes_kd, dim=-1)
        with torch.no_grad():
            scores_nk = z_bhwd.flatten(0, 2) @ codes_kd.T - 0.5 * codes_kd.square().sum(-1)
            nearest_bhw = scores_nk.argmax(-1).view(z_bhwd.shape[:3])
        chosen_bhwd = codes_kd[nearest_bhw]
        made = self.decoder((z_bhwd + (chosen_bhwd - z_bhwd).detach()).permute(0, 3, 1, 2))
        error, cfg = images_bchw - made, self.loss
        loss = cfg.l1 * error.abs().mean() + cfg.l2 * error.square().mean()
        loss = loss + cfg.codebook * (chosen_bhwd - z_bhwd.detach()).square().mean()
        return loss + cfg.commitment * (chosen_bhwd.detach() - z_bhwd).square().mean()


class Masked(nn.Module):
    """The masked loss of a generator with dropout after each branch."""

    def __init__(self, generator, smoothing: float):
        super().__init__()
        self.network, self.smoothing, self.rate = Llama(generator), smoothing, generator.cfg.dropout

    def forward(self, inputs_bl, targets_bl, mask_bl, label_b):
        logits_blv = self.network(inputs_bl, label_b, self.rate if self.training else 0.0)
        loss_bl = F.cross_entropy(
            logits_blv.flatten(0, 1), targets_bl.flatten(), label_smoothing=self.smoothing, reduction="none"
        )
        return (loss_bl * mask_bl.flatten()).sum() / mask_bl.sum()


class Trainer:
    """`trainer()` runs one whole step on the batch that `draw` makes."""

    def __init__(self, module: nn.Module, options, draw: Callable, compiled: bool):
        self.module, self.draw, self.options = _trainable(module), draw, options
        self.loss = torch.compile(module, dynamic=False) if compiled else module
        rate, betas = options.learning_rate, (options.beta1, options.beta2)
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, rate, betas, weight_decay=options.weight_decay, fused=True)
        self.averages = [p.detach().clone() for p in self.parameters] if options.ema_decay else []

    def __call__(self) -> None:
        loss = self.loss(*self.draw())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.optimizer.step()
        if self.averages:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1.0 - self.options.ema_decay)


def _image_batches(batch: int, size: int) -> Callable:
    def draw():
        pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        return ((pixels.float() / 127.5 - 1.0).to(memory_format=torch.channels_last),)

    return draw


def _code_batches(batch: int, cfg) -> Callable:
    length = math.prod(cfg.grid)

    def draw():
        targets_bl = torch.randint(0, cfg.codebook_size, (batch, length))
        label_b = torch.where(torch.rand(batch) < 0.1, cfg.num_classes, torch.randint(0, cfg.num_classes, (batch,)))
        count_b1 = (torch.rand(batch, 1).acos() * (2 / math.pi) * length).ceil().clamp(min=1)
        mask_bl = torch.rand(batch, length).argsort(-1).argsort(-1) < count_b1
        return torch.where(mask_bl, cfg.mask_id, targets_bl), targets_bl, mask_bl, label_b

    return draw


def _check(name: str, ours: float, theirs: float) -> None:
    if not math.isclose(ours, theirs, rel_tol=TOLERANCE):
        raise AssertionError(f"{name}: the PyTorch twin's loss is {theirs}, ours {ours}")


def tokenizer_forms(tokenizer, loss_cfg, options, batch: int) -> dict[str, Callable]:
    """{name: a call that runs one step} of both forms; the losses are compared before."""
    from maskgil_jax.training.vq_losses import tokenizer_loss

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    size = tokenizer.cfg.image_size
    images = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)

    @jax.jit
    def loss(model):
        kernel, found = model.decoder.conv_out.kernel[...], model.quantize(model.latents(jnp.asarray(images)))
        features = model.decode_features(found.z_bhwd)
        return tokenizer_loss(lambda k: model.render(features, k), kernel, jnp.asarray(images), found.losses, loss_cfg)[0]

    with torch.no_grad():
        twin = Tokenizer(tokenizer, loss_cfg)(torch.from_numpy(images).permute(0, 3, 1, 2))
    _check("tokenizer", float(loss(tokenizer)), float(twin))
    make = lambda: Tokenizer(tokenizer, loss_cfg).to(memory_format=torch.channels_last)  # noqa: E731
    return _forms(make, options, _image_batches(batch, size))


def generator_forms(generator, objective, options, batch: int) -> dict[str, Callable]:
    """As `tokenizer_forms`, of a class-conditional Llama of the default layout."""
    from maskgil_jax.training.losses import masked_cross_entropy

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    draw = _code_batches(batch, generator.cfg)
    inputs, targets, mask, label = (t.numpy() for t in draw())
    smoothing = objective.label_smoothing

    @jax.jit
    def loss(model):
        logits = model(jnp.asarray(inputs, jnp.int32), ClassCondition(jnp.asarray(label, jnp.int32)))
        sums = masked_cross_entropy(logits, jnp.asarray(targets, jnp.int32), jnp.asarray(mask), smoothing, 0.0, 0.0)[1]
        return sums["loss_sum"] / sums["weight_sum"]

    with torch.no_grad():
        twin = Masked(generator, smoothing).eval()(*map(torch.from_numpy, (inputs, targets, mask, label)))
    _check("generator", float(loss(generator)), float(twin))
    return _forms(lambda: Masked(generator, smoothing), options, draw)


def _forms(make: Callable, options, draw: Callable) -> dict[str, Callable]:
    calls: dict[str, Callable] = {"PyTorch, eager": Trainer(make(), options, draw, compiled=False)}
    compiled = Trainer(make(), options, draw, compiled=True)
    try:
        compiled()
    except Exception as error:  # no C++ compiler, an unsupported Python: whatever it is, the rest can be measured
        print(f"torch.compile does not work here: {type(error).__name__}: {str(error).splitlines()[0]}")
    else:
        calls["PyTorch, compiled"] = compiled
    return calls
