"""MaskGIL-B (111M) on ImageNet 256x256 with the LlamaGen VQ-16 tokenizer: the paper's recipe (4.3, Tables 2 and 3).

maskgil encode --tokenizer weights/vq16 --data.path tfds:imagenet2012 --flip --out codes/imagenet_vq16
maskgil train --config configs/c2i_b.py --workdir runs/c2i_b

The tokenizer is a weights folder (`--config.tokenizer`), the code store is made by the first command. AdamW 1e-4 without
warm-up, batch 256, 400 epochs, no EMA, constant rate: as the paper says; what it leaves open is named in the comments.
"""

from ml_collections import ConfigDict, config_dict

IMAGENET_IMAGES = 1_281_167

# What may be changed against the preset, e.g. --config.model.post_norm=sandwich; None leaves the preset's value.
MODEL_CHANGES = dict(
    patch=int, width=int, depth=int, heads=int, kv_heads=int, mlp_width=int, dropout=float, qk_norm=str, post_norm=str
)
MODEL_CHANGES |= dict(class_position=str, positions=str, mask_logit=bool, causal=bool, layers=str, attention=str)


def add_upkeep(config: ConfigDict, *, every: int, keep: int) -> None:
    """The options of checkpoints and guards, which every training has."""
    config.checkpoint = ConfigDict(
        dict(
            every=every,
            keep=keep,
            keep_every=0,  # multiples of this are never deleted
            keep_best=0,  # nor are the steps with the lowest loss, this many
            allow_data_change=False,  # go on with other data options than the checkpoint was made with
        )
    )
    config.guard = ConfigDict(
        dict(
            spike=10.0,  # a gradient norm this many times its running mean is skipped, as is one that is not finite
            warmup=50,
            stop_after=10,  # skipped steps in a row
            loss_alarm=6.0,  # standard deviations
            watchdog_seconds=300.0,  # without the end of a step
            watchdog_factor=10.0,
        )
    )


def get_config() -> ConfigDict:
    """The paper's class-conditional recipe at size B."""
    config = ConfigDict()
    config.task = "generator"
    config.seed = 0
    config.batch_size = 256
    config.total_steps = 400 * IMAGENET_IMAGES // config.batch_size
    config.tokenizer = "weights/vq16"
    config.data = ConfigDict(
        dict(
            path="tfds:imagenet2012",  # read only if `codes` is empty: then images are encoded on the fly
            split="train",
            label="",
            image_size=256,
            crop="center",
            flip=True,
            num_workers=4,
            data_dir="",
            codes="codes/imagenet_vq16",
        )
    )
    # Attention's scores are dearer to keep than to compute again: "dots" takes 15% less time than "none" on an H100, 28% less
    # by the estimate for v5e, in half of the memory (docs/scaling.md).
    config.model = ConfigDict(dict(family="llama", preset="B", dtype="bfloat16", remat="dots"))
    for name, kind in MODEL_CHANGES.items():
        config.model[name] = config_dict.placeholder(kind)
    config.objective = ConfigDict(
        dict(
            schedule="arccos",
            law="exact",
            label_smoothing=0.1,
            unmasked_weight=0.0,  # the paper's loss: masked tokens alone; the published code has 1.0
            class_dropout=0.1,
            accumulate=1,
            loss_chunks=1,  # 16 or more for a codebook of 2^18, whose logits would not fit into memory at once
            z_loss=0.0,  # 1e-4 keeps logits from drifting in long runs
        )
    )
    config.optimizer = ConfigDict(
        dict(
            learning_rate=1e-4,
            beta1=0.9,
            beta2=0.96,
            weight_decay=1e-5,
            decay_on="matrices",  # the published code decays norms too: "all"
            clip_norm=1.0,  # published code; the paper does not say
            warmup_steps=0,
            decay="constant",
            ema_decay=0.0,
            moment_dtype="float32",  # of the first moment; bfloat16 saves 2 bytes a parameter
        )
    )
    # docs/scaling.md, B on v5p:4x4x4: the state whole on every chip and no recomputation take 3 GiB at 4 images a chip, 6 at
    # 16, 19 at 64. So 16 chips of 16 GiB do for the batch of 256.
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, dcn_data=1))
    config.decode = ConfigDict(
        dict(
            steps=8,
            schedule="arccos",
            plan="density",
            guidance=2.0,
            guidance_ramp="constant",
            order="confidence",
            temperature=1.0,
            choice_temperature=4.5,
            top_k=config_dict.placeholder(int),
            top_p=config_dict.placeholder(float),
        )
    )
    add_upkeep(config, every=5_000, keep=3)
    config.evaluate = ConfigDict(  # figures of samples while training; needs a weights folder for its features
        dict(
            every=0,  # steps; 0: never
            count=5_000,
            features="weights/inception",
            reference="VIRTUAL_imagenet256_labeled.npz",
            split="validation",  # if the reference is a data set
            best="fid",  # the figure by which the best weights are kept in `best/`
            batch_size=64,
            seed=0,
        )
    )
    config.log_every = 100
    config.sample_every = 10_000
    config.sample_count = 16
    return config
