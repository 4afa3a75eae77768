"""Text to image, stage 1 of 2: MaskGIL-XL on captioned images in size buckets of 256 pixels (paper 4.4).

maskgil convert vqgan.ckpt weights/chameleon_vq
maskgil encode --tokenizer weights/chameleon_vq --data.path captions.jsonl --captions --sizes 256 --out codes/t2i_256
maskgil train --config configs/t2i_xl_256.py --workdir runs/t2i_xl_256

The paper says: Chameleon-VQ, features of Gemma-2B through an MLP in front of the image, 2M images, 256 then 512 pixels,
size buckets, and all else as for classes: AdamW 1e-4 without warm-up, betas (0.9, 0.96), batch 256, a tenth of the
texts dropped. Comments name what it leaves open, and what is chosen here.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_xl

IMAGES = 2_000_000


def get_config() -> ConfigDict:
    """`c2i_xl.py` with captions and size buckets."""
    config = c2i_xl.get_config()
    config.tokenizer = "weights/chameleon_vq"  # 8192 codes, 16 pixels a side
    # The list of buckets is not in the paper; it is that of the same authors' Lumina-mGPT: 25 sizes of at most 256
    # codes. The paper mentions no mirror images, which captions with left and right forbid.
    config.data.update(path="captions.jsonl", codes="codes/t2i_256", image_size=256, buckets=256, flip=False)
    # Open: which Gemma, which state, the length. The reference is Gemma 2's report, whose 2B is 2304 wide. Layer -2
    # without the last norm is what the same authors' Lumina-Next and Lumina-Image 2.0 take, hence the RMSNorm before
    # the MLP (config.TEXT_RECIPE). 128 positions and 256 codes are three times the 128 lanes of a TPU.
    config.text_encoder.update(path="hf://google/gemma-2-2b", layer=-2, max_tokens=128, dtype="bfloat16")
    # Open: the length of either stage. 200 epochs each are the 400 of the class-conditional XL together.
    config.total_steps = 200 * IMAGES // config.batch_size
    # Open: guidance and steps of sampling. 4 is the scale of the paper's text-conditional hybrid (5.1).
    config.decode.update(steps=16, guidance=4.0)
    return config
