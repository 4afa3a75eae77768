"""Low-rank fine-tuning (LoRA) of aMUSEd-256 on captioned images, such as ten pictures of one style.

maskgil convert FOLDER_OF_DIFFUSERS weights/amused-256
maskgil train --config configs/amused_finetune.py --workdir runs/mine --config.data.path=my_images

my_images: images with .txt files of the same name (`data/caption_sets.py` has the other layouts). The result is a whole
pipeline, runs/mine/weights, and runs/mine/weights/lora.safetensors, the change alone, in the names of diffusers:

maskgil_jax.load("weights/amused-256", lora="runs/mine/weights/lora.safetensors", lora_scale=0.8)

--config.lora.rank=0 trains all weights. For aMUSEd-512: --config.data.image_size=512 --config.model.preset=512.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b

PIPELINE = "weights/amused-256"


def get_config() -> ConfigDict:
    """The run file."""
    config = c2i_b.get_config()
    config.batch_size = 8
    config.total_steps = 500
    config.tokenizer = PIPELINE
    config.init_from = PIPELINE
    config.data.update(path="my_images", image_size=256, label="", codes="", texts="", flip=False)
    config.text_encoder.update(path=f"{PIPELINE}/text_encoder")
    config.model.update(family="uvit", preset="256")
    config.lora = ConfigDict(dict(rank=16, alpha=16.0, targets=r"attn\w*/(q|k|v|o)/kernel$"))
    # aMUSEd's own training: masked share by the cosine, loss on masked tokens alone.
    config.objective.update(schedule="cosine", label_smoothing=0.0, class_dropout=0.1)
    config.optimizer.update(learning_rate=1e-4, warmup_steps=0, decay="constant", ema_decay=0.0, weight_decay=0.01)
    config.decode.update(steps=12, schedule="cosine", plan="gamma_canvas", guidance=10.0, choice_temperature=2.0)
    config.checkpoint.update(every=100)
    config.log_every = 10
    config.sample_every = 100
    config.sample_count = 4
    return config
