"""AdamW with the paper's options (4.3): 1e-4, betas (0.9, 0.96), weight decay 1e-5, gradients clipped at norm 1."""

from __future__ import annotations

import re

import jax
import optax

from maskgil_jax.config import choose
from maskgil_jax.runtime.mesh import path_name

# Paths without weight decay under `decay_on="matrices"`: norms, biases, and the null text, which is not trained.
# All other parameters are matrices or tables.
NO_DECAY = r"(^|/)(scale|bias|head_bias|caption_null|caption_null_mask)$"
UNTRAINED = r"(^|/)(caption_null|caption_null_mask)$"


def learning_rate(opt, total_steps: int) -> optax.Schedule:
    """The schedule: linear warm-up over `opt.warmup_steps`, then constant or cosine decay to zero."""
    choose("optimizer.decay", opt.decay, ("constant", "cosine"))
    if opt.decay == "constant":
        after = optax.constant_schedule(opt.learning_rate)
    else:
        after = optax.cosine_decay_schedule(opt.learning_rate, max(total_steps - opt.warmup_steps, 1))
    if not opt.warmup_steps:
        return after
    warmup = optax.linear_schedule(opt.learning_rate / opt.warmup_steps, opt.learning_rate, opt.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [opt.warmup_steps])


def decay_mask(params: dict) -> dict:
    """A tree of booleans: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not re.search(NO_DECAY, path_name(path)), params)


def untrained_mask(params: dict) -> dict:
    """A tree of booleans: False at the null text, which is set once and must stay as it is."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not re.search(UNTRAINED, path_name(path)), params)


def make_optimizer(opt, total_steps: int, *, text: bool = False) -> optax.GradientTransformation:
    """Makes the clipped AdamW of the `optimizer` section of a run file.

    `decay_on="all"` also decays norms, as the published code does. `moment_dtype="bfloat16"` halves the memory of the first
    moment; the second stays float32, as bfloat16 would round its small changes to zero. text: the network is conditioned on
    text, so that it has a null text, which never decays.
    """
    choose("optimizer.decay_on", opt.decay_on, ("matrices", "all"))
    moment_dtype = choose("optimizer.moment_dtype", getattr(opt, "moment_dtype", "float32"), ("float32", "bfloat16"))
    return optax.chain(
        optax.clip_by_global_norm(opt.clip_norm) if opt.clip_norm else optax.identity(),
        optax.adamw(
            learning_rate(opt, total_steps),
            b1=opt.beta1,
            b2=opt.beta2,
            mu_dtype=moment_dtype,
            weight_decay=opt.weight_decay,
            mask=decay_mask if opt.decay_on == "matrices" else untrained_mask if text else None,
        ),
    )
