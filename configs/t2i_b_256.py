"""Text to image at size B on size buckets of 256 pixels: `t2i_xl_256.py` for smaller budgets.

maskgil train --config configs/t2i_b_256.py --workdir runs/t2i_b_256

Not in the paper. CLIP's text network (ViT-L/14, 123M parameters) takes the place of Gemma, whose 2.6B parameters would
cost twice as much as a step of B. For a small set of captions, store the features once instead (`config.data.texts`).
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import t2i_xl_256


def get_config() -> ConfigDict:
    """`t2i_xl_256.py` with a smaller network and encoder."""
    config = t2i_xl_256.get_config()
    config.model.preset = "B"
    config.text_encoder.update(path="hf://openai/clip-vit-large-patch14", layer=-2, max_tokens=77)
    config.mesh.update(data=-1, fsdp=1)  # 111M parameters fit on every device
    return config
