"""Text to image, stage 2 of 2: the weights of `t2i_xl_256.py`, trained on in size buckets of 512 pixels (paper 4.4).

maskgil encode --tokenizer weights/chameleon_vq --data.path captions.jsonl --captions --sizes 512 --out codes/t2i_512
maskgil train --config configs/t2i_xl_512.py --workdir runs/t2i_xl_512
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import t2i_xl_256


def get_config() -> ConfigDict:
    """`t2i_xl_256.py` with four times as many codes, from its weights."""
    config = t2i_xl_256.get_config()
    config.init_from = "runs/t2i_xl_256/weights"
    # 49 sizes of at most 1024 codes. All parameters are taken over: positions are angles, so rows and columns beyond
    # those of stage 1 need no new ones. Open in the paper: whether they are scaled (`rope_scaling`); here they are not,
    # since a batch of several sizes has one table of angles.
    config.data.update(codes="codes/t2i_512", image_size=512, buckets=512)
    return config
