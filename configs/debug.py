"""A run of seconds on any machine, to see that everything works; learns nothing worth looking at.

maskgil train --config configs/debug.py --workdir runs/debug
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """A two-layer generator on the built-in emoji, encoded on the fly by the shipped tokenizer."""
    config = ConfigDict()
    config.task = "generator"
    config.seed = 0
    config.total_steps = 20
    config.batch_size = 16
    config.tokenizer = "demo"
    config.data = ConfigDict(
        dict(
            path="emoji",
            split="train",
            label="subgroup",
            image_size=64,
            crop="none",
            flip=False,
            num_workers=0,
            data_dir="",
            codes="",
        )
    )
    config.model = ConfigDict(dict(family="llama", preset="tiny"))
    config.objective = ConfigDict(
        dict(schedule="arccos", law="exact", label_smoothing=0.1, unmasked_weight=0.0, class_dropout=0.1, accumulate=1)
    )
    config.optimizer = ConfigDict(
        dict(
            learning_rate=1e-3,
            beta1=0.9,
            beta2=0.96,
            weight_decay=1e-5,
            decay_on="matrices",
            clip_norm=1.0,
            warmup_steps=5,
            decay="constant",
            ema_decay=0.0,
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.decode = ConfigDict(
        dict(
            steps=8,
            schedule="arccos",
            plan="density",
            guidance=2.0,
            guidance_ramp="constant",
            temperature=1.0,
            choice_temperature=4.5,
            top_k=config_dict.placeholder(int),
            top_p=config_dict.placeholder(float),
        )
    )
    config.checkpoint = ConfigDict(dict(every=10, keep=2))
    config.log_every = 5
    config.sample_every = 20
    config.sample_count = 16
    return config
