"""Trains a tokenizer (VQGAN, MAGVIT2): one jitted step updates the autoencoder and the patch discriminator."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu.metrics import Average
from flax import nnx

from maskgil_jax import networks as network
from maskgil_jax.checkpoints.weights import load_network, save_weights
from maskgil_jax.config import (
    MAGVIT_PRESETS,
    VQ_PRESETS,
    LoaderConfig,
    MagvitConfig,
    VQConfig,
    choose,
    from_dict,
    height_width,
    require,
    to_dict,
)
from maskgil_jax.data.images import image_batches, open_held_out, open_images
from maskgil_jax.files.images import contact_sheet
from maskgil_jax.files.paths import open_folder
from maskgil_jax.runtime.mesh import place, replicated, to_host
from maskgil_jax.tokenizers.images import reconstruct, to_unit
from maskgil_jax.training.discriminator import PatchGAN
from maskgil_jax.training.loop import data_identity, fit, loader_config, open_mesh, with_arrays
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.skip_updates import select_if_applied, skip_bad_updates, skip_config, step_metrics
from maskgil_jax.training.vq_losses import VQLossConfig, discriminator_loss, started, tokenizer_loss

_log = logging.getLogger(__name__)


@flax.struct.dataclass
class TokenizerState:
    """The state of a tokenizer's training.

    last_used: the step at which each code was last chosen. waiting: steps since each code was chosen or restarted.
    disc: the discriminator's parameters, running statistics and optimizer state; an empty dict without an adversarial
    term.
    """

    step: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState
    last_used: jax.Array
    waiting: jax.Array
    disc: dict

    @property
    def averaged(self) -> dict:
        """The parameters to evaluate and save: the EMA if there is one."""
        return self.ema or self.params


def init_state(cfg: VQConfig | MagvitConfig, make_discriminator, tx, disc_tx, *, ema: bool):
    """A function key -> TokenizerState."""

    def init(key: jax.Array) -> TokenizerState:
        net_key, disc_key = jax.random.split(key)
        params, disc = network.params_of(network.create(cfg, net_key)), {}
        if make_discriminator:
            model = make_discriminator(disc_key)
            disc_params = network.params_of(model)
            disc = {"params": disc_params, "stats": model.initial_stats(), "opt_state": disc_tx.init(disc_params)}
        copy = jax.tree.map(jnp.copy, params) if ema else {}
        never, zeros = jnp.full(cfg.codebook_size, -(2**30), jnp.int32), jnp.zeros(cfg.codebook_size, jnp.int32)
        return TokenizerState(jnp.zeros((), jnp.int32), params, copy, tx.init(params), never, zeros, disc)

    return init


def restart_codes(key: jax.Array, embedding_kd, latents_nd, dead_k, noise: float = 0.01):
    """Moves dead codes to random latents of the batch.

    The noise separates codes that are moved to equal latents, as of white background: of equal codes only the first is
    ever chosen.
    """
    pick_key, noise_key = jax.random.split(key)
    picks_k = jax.random.randint(pick_key, dead_k.shape, 0, latents_nd.shape[0])
    moved_kd = latents_nd[picks_k] + noise * jax.random.normal(noise_key, embedding_kd.shape)
    return jnp.where(dead_k[:, None], moved_kd, embedding_kd)


def jitted_step(
    cfg: VQConfig | MagvitConfig, loss_cfg: VQLossConfig, config, make_discriminator, tx, disc_tx, schedule, state_sharding
):
    """The program (state, batch, key, lpips) -> (state, metrics); the state is donated.

    `lpips`: None, or the network.
    """
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_discriminator(jax.random.key(0)))) if make_discriminator else None

    @functools.partial(jax.jit, donate_argnames="state", out_shardings=(state_sharding, None))
    def train_step(state: TokenizerState, batch: dict, key: jax.Array, lpips):
        images = to_unit(batch["image"])
        discriminator = nnx.merge(graphdef, jax.lax.stop_gradient(state.disc["params"])) if graphdef else None

        def loss_fn(params):
            model = network.build(cfg, params)
            latents = model.latents(images)
            quantized = model.quantize(latents, entropy=loss_cfg.entropy > 0)
            features = model.decode_features(quantized.z_bhwd)
            loss, metrics = tokenizer_loss(
                functools.partial(model.render, features),
                params["decoder"]["conv_out"]["kernel"],
                images,
                quantized.losses,
                loss_cfg,
                perceptual=lpips,
                discriminate=None if discriminator is None else lambda x: discriminator(x, state.disc["stats"], train=True)[0],
                step=state.step,
            )
            made = model.render(features, params["decoder"]["conv_out"]["kernel"])
            return loss, (metrics, made, model.codebook.normalized(latents), quantized.codes_bhw)

        grads, (metrics, made, latents, codes) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        disc = state.disc
        if discriminator is not None:
            disc, metrics["discriminator"] = update_discriminator(
                graphdef, state, images, jax.lax.stop_gradient(made), loss_cfg, disc_tx
            )

        last_used = state.last_used.at[codes.reshape(-1)].set(state.step)
        waiting = jnp.where(last_used == state.step, 0, state.waiting + 1)
        if config.restart_after:
            dead_k, z_nd = waiting >= config.restart_after, latents.reshape(-1, cfg.codebook_dim)
            restart_key, table = jax.random.fold_in(key, state.step), params["codebook"]["embedding"]
            params["codebook"]["embedding"] = restart_codes(restart_key, table, z_nd, dead_k)
            waiting = jnp.where(dead_k, 0, waiting)
        ema = optax.incremental_update(params, state.ema, 1.0 - config.optimizer.ema_decay) if state.ema else {}
        params, ema, last_used, waiting, disc = select_if_applied(
            opt_state,
            (params, ema, last_used, waiting, disc),
            (state.params, state.ema, state.last_used, state.waiting, state.disc),
        )
        metrics |= {
            "psnr": -10.0 * jnp.log10(jnp.mean(jnp.square((images - jnp.clip(made, -1, 1)) / 2)) + 1e-10),
            "codebook_usage": jnp.mean(last_used > state.step - config.usage_window),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        means = {name: Average(value, jnp.ones(())) for name, value in metrics.items()}
        means |= step_metrics(grads, state.params, params, opt_state)
        return TokenizerState(state.step + 1, params, ema, opt_state, last_used, waiting, disc), means

    return train_step


def update_discriminator(graphdef, state: TokenizerState, images, made, loss_cfg: VQLossConfig, disc_tx):
    """One discriminator update on the images and reconstructions of the step; none before `disc_start`."""

    def loss_fn(disc_params):
        model = nnx.merge(graphdef, disc_params)
        real, stats = model(images, state.disc["stats"], train=True)
        fake, stats = model(made, stats, train=True)
        return discriminator_loss(loss_cfg.adversarial_kind, real, fake), stats

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.disc["params"])
    on = started(state.step, loss_cfg)
    updates, opt_state = disc_tx.update(grads, state.disc["opt_state"], state.disc["params"])
    stats = select_if_applied(opt_state, stats, state.disc["stats"])
    new = {"params": optax.apply_updates(state.disc["params"], updates), "stats": stats, "opt_state": opt_state}
    return jax.tree.map(lambda a, b: jnp.where(on > 0, a, b), new, state.disc), loss * on


def sheet(params, images, cfg: VQConfig | MagvitConfig) -> np.ndarray:
    """A contact sheet of images above their reconstructions, uint8 (h, w, 3)."""
    copies = to_host(reconstruct(network.build(cfg, params), images))
    return contact_sheet(np.concatenate([images, copies]), columns=len(images))


def train(config, workdir) -> pathlib.Path:
    """Trains the tokenizer of a run file and returns its weights folder, `workdir`/weights.

    A `workdir` with checkpoints is continued. Raises a `ValueError` for options that do not fit together.
    """
    mesh = open_mesh(config)
    init_key, step_key = (place(k, replicated(mesh)) for k in jax.random.split(jax.random.key(config.seed)))

    # data
    data = config.data
    size = height_width(data.image_size, "config.data.image_size")
    require(size[0] == size[1], f"config.data.image_size: tokenizers are trained on squares, got {size[0]} x {size[1]}")
    options = dict(label=data.label, size=size, data_dir=data.data_dir or None)
    source, loader = open_images(data.path, split=data.split, **options), loader_config(config)

    batches = functools.partial(image_batches, source, loader, size=size, crop=data.crop, flip=data.flip)
    held_out = open_held_out(source, data.path, split=data.held_out, **options)
    crop = "center" if data.crop != "none" else "none"
    preview = next(image_batches(held_out, LoaderConfig(min(16, len(held_out))), size=size, crop=crop))["image"]

    # model, losses, optimizers
    presets: dict[str, VQConfig | MagvitConfig] = {**VQ_PRESETS, **MAGVIT_PRESETS}
    preset = presets[choose("config.model.preset", config.model.preset, presets)]
    changes = {name: value for name, value in config.model.items() if name != "preset" and value is not None}
    cfg = from_dict(type(preset), {**to_dict(preset), **changes, "image_size": size[0]}, "config.model")
    require(
        isinstance(cfg, VQConfig) or not config.restart_after,
        f"config.restart_after: {config.model.preset} has no codebook vectors to restart; set it to 0",
    )
    loss_cfg = from_dict(VQLossConfig, config.loss.to_dict(), "config.loss")
    lpips = None
    if loss_cfg.perceptual and config.lpips:
        lpips = place(load_network(config.lpips, "lpips"), replicated(mesh))
    elif loss_cfg.perceptual:
        _log.info("perceptual loss off: config.lpips names no weights folder")
    require(config.usage_window >= 1, f"config.usage_window: must be at least 1 step, got {config.usage_window}")
    make_discriminator = None
    if loss_cfg.adversarial:
        make_discriminator = lambda key: PatchGAN(**config.discriminator.net, rngs=nnx.Rngs(key))  # noqa: E731
    tx, schedule = make_optimizer(config.optimizer, config.total_steps), learning_rate(config.optimizer, config.total_steps)
    disc_tx = make_optimizer(config.discriminator.optimizer, config.total_steps)
    guard = skip_config(config)
    tx = skip_bad_updates(tx, guard)
    disc_tx = skip_bad_updates(disc_tx, dataclasses.replace(guard, spike=0.0))  # jumps of adversarial gradients are normal

    state = fit(
        config,
        workdir,
        mesh,
        name="tokenizer",
        primary_metric="reconstruction",
        init=init_state(cfg, make_discriminator, tx, disc_tx, ema=config.optimizer.ema_decay > 0),
        init_key=init_key,
        make_step=functools.partial(jitted_step, cfg, loss_cfg, config, make_discriminator, tx, disc_tx, schedule),
        frozen=(step_key, lpips),
        batches=with_arrays(batches, ("image",)),
        fingerprint_inputs={
            "model": cfg,
            "data": data_identity(config, source),
            "loss": loss_cfg,
            "seed": config.seed,
            "batch_size": config.batch_size,
        },
        sample_fn=lambda state: {"reconstructions": sheet(state.averaged, preview, cfg)},
    )

    weights, averaged = open_folder(workdir) / "weights", to_host(state.averaged)
    if jax.process_index() == 0:
        trained = {"steps": config.total_steps, "batch_size": config.batch_size, "data": data.path}
        save_weights(weights, cfg, averaged, metadata={"trained": trained})
    return weights
