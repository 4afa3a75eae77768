"""A VQ tokenizer on the built-in emoji: about two minutes of CPU time. `maskgil demo` runs it first.

maskgil train --config configs/demo_tokenizer.py --workdir runs/demo_tokenizer
"""

import pathlib
import runpy

from ml_collections import ConfigDict, config_dict

# What may be changed against the preset, e.g. --config.model.codebook_size=1024; None leaves the preset's value.
MODEL_CHANGES = ("channels", "res_blocks", "latent_dim", "codebook_size", "codebook_dim", "norm_groups", "patch", "bits")


def get_config() -> ConfigDict:
    """64x64 pictures <-> 16x16 codes: 8,000 images, 21 dB on held-out ones."""
    config = ConfigDict()
    config.task = "tokenizer"
    config.seed = 0
    config.total_steps = 500
    config.batch_size = 16
    config.data = ConfigDict(
        dict(
            path="emoji",
            split="train",
            held_out="test",
            label="subgroup",
            image_size=64,
            crop="none",
            flip=True,
            num_workers=0,
            data_dir="",
        )
    )
    config.model = ConfigDict(dict(preset="patches"))
    for name in MODEL_CHANGES:
        config.model[name] = config_dict.placeholder(int)
    # No adversarial and no perceptual term: neither pays off in two minutes.
    config.loss = ConfigDict(
        dict(
            l1=1.0,
            l2=1.0,
            perceptual=0.0,
            codebook=1.0,
            commitment=0.25,
            entropy=0.0,
            adversarial=0.0,
            adversarial_kind="hinge",
            disc_start=0,
            adaptive=True,
        )
    )
    config.lpips = ""
    adam = dict(beta1=0.9, beta2=0.99, weight_decay=0.0, decay_on="matrices", clip_norm=1.0, ema_decay=0.99)
    config.optimizer = ConfigDict(dict(learning_rate=2e-3, warmup_steps=20, decay="cosine", **adam))
    config.discriminator = ConfigDict(
        dict(
            net=dict(width=32, layers=2, norm="group"),
            optimizer=dict(learning_rate=1e-3, warmup_steps=20, decay="cosine", **adam),
        )
    )
    config.restart_after = 25  # steps a code may go unused before it is moved onto a latent of the batch; 0: never
    config.usage_window = 50  # steps over which codebook usage is counted
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, dcn_data=1))
    add_upkeep = runpy.run_path(str(pathlib.Path(__file__).with_name("c2i_b.py")))["add_upkeep"]
    add_upkeep(config, every=200, keep=1)
    config.log_every = 20
    config.sample_every = 200
    return config
