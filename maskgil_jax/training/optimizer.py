"""AdamW with the paper's options (4.3): 1e-4, betas (0.9, 0.96), weight decay 1e-5, gradients clipped at norm 1.

Muon (Jordan 2024, as optax has it) is the other choice.
"""

from __future__ import annotations

import re

import jax
import optax
import optax.contrib

from maskgil_jax.config import choose, require
from maskgil_jax.runtime.mesh import path_name

# Paths without weight decay under `decay_on="matrices"`: norms, biases, and the null text, which is not trained.
# All other parameters are matrices or tables.
NO_DECAY = r"(^|/)(scale|bias|head_bias|caption_null|caption_null_mask)$"
UNTRAINED = r"(^|/)(caption_null|caption_null_mask)$"
# What Muon updates: the matrices of the layers, which are stacked (depth, in, out). Tables, heads and scales get AdamW.
LAYER_MATRIX = r"^layers/.*kernel$"
MUON_RMS = 0.2  # root mean square of Muon's updates, so that AdamW's learning rates fit (arXiv:2502.16982)


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


def layer_matrices(params: dict) -> dict:
    """A tree with Muon's dimensions at the stacked matrices of the layers, and None elsewhere.

    Raises a `ConfigError` if there is no such matrix.
    """

    def dimensions(path, leaf):
        # Axis 0 is that of the layers: each layer's matrix is orthogonalised by itself.
        stacked = leaf.ndim == 3 and re.search(LAYER_MATRIX, path_name(path))
        return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2) if stacked else None

    found = jax.tree_util.tree_map_with_path(dimensions, params)
    require(bool(jax.tree.leaves(found)), "optimizer.name: muon is for networks with stacked layers; give adamw")
    return found


def make_optimizer(opt, total_steps: int, *, text: bool = False) -> optax.GradientTransformation:
    """Makes the clipped AdamW or Muon of the `optimizer` section of a run file.

    Muon orthogonalises the momentum of the matrices of the layers; the other parameters get AdamW with Nesterov
    momentum, for which `beta1` and `beta2` hold.
    `decay_on="all"` also decays norms, as the published code does. `moment_dtype="bfloat16"` halves the memory of the
    first moment; the second stays float32, as bfloat16 would round its small changes to zero. text: the network is
    conditioned on text, so that it has a null text, which never decays.
    """
    choose("optimizer.decay_on", opt.decay_on, ("matrices", "all"))
    moment_dtype = choose("optimizer.moment_dtype", getattr(opt, "moment_dtype", "float32"), ("float32", "bfloat16"))
    rate = learning_rate(opt, total_steps)
    mask = decay_mask if opt.decay_on == "matrices" else untrained_mask if text else None
    if choose("optimizer.name", getattr(opt, "name", "adamw"), ("adamw", "muon")) == "muon":
        optimizer = optax.contrib.muon(
            rate,
            weight_decay=opt.weight_decay,
            weight_decay_mask=mask,
            mu_dtype=moment_dtype,
            adam_b1=opt.beta1,
            adam_b2=opt.beta2,
            adam_weight_decay=opt.weight_decay,
            muon_weight_dimension_numbers=layer_matrices,
            consistent_rms=MUON_RMS,
        )
    else:
        optimizer = optax.adamw(
            rate, b1=opt.beta1, b2=opt.beta2, mu_dtype=moment_dtype, weight_decay=opt.weight_decay, mask=mask
        )
    return optax.chain(optax.clip_by_global_norm(opt.clip_norm) if opt.clip_norm else optax.identity(), optimizer)
