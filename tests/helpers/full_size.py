"""Published networks at full size: weights by recipe -> a .pt file -> convert -> load -> the reference's summary
numbers.

python -m tests.helpers.full_size [vq16] [gpt_b]      prints a table; without a name, both

The recipe's hash proves the weights; the tolerances are those stored with the reference: ten times its own float32
error.
"""

import gzip
import hashlib
import json
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `python -m`; pytest has it already

from helpers.file_assembler import write_torch_zip
from helpers.torch_names import GOLDEN, draw, generated, golden
from maskgil_jax.checkpoints.weights import load_generator, load_tokenizer
from maskgil_jax.convert.families import FAMILIES
from maskgil_jax.convert.main import convert
from maskgil_jax.models.condition import ClassCondition

KEEP = {"quantize.codebook_used": np.zeros(65536, np.float32)}
RTOL = 1e-5
Row = tuple[str, float, float]  # what, largest difference, largest share of what is allowed (below 1: within)


def converted(case: str, listing: str, family: str, folder: pathlib.Path) -> tuple[pathlib.Path, dict, dict]:
    """(weights folder, meta, arrays): the published names and shapes, filled by recipe,
    through a file and `convert`."""
    meta, arrays = golden("full_size", case)
    listed = json.loads(gzip.decompress((GOLDEN / "convert" / "listings.json.gz").read_bytes()))[listing]["tensors"]
    shapes = {name: tuple(size for size in about if type(size) is int) for name, about in listed.items()}
    digest = hashlib.sha256()

    def drawn():
        for name in sorted(shapes):
            array = draw(name, shapes[name], meta["recipe"], KEEP)
            digest.update(name.encode() + b"\0" + array.tobytes())
            yield name, array

    write_torch_zip(folder / "file.pt", drawn(), FAMILIES[family].container)
    assert digest.hexdigest() == meta["state_sha256"], "the recipe's weights"
    done = convert(folder / "file.pt", folder / "weights")
    assert done.plan.name == family
    (folder / "file.pt").unlink()
    return folder / "weights", meta, arrays


def compare(got: dict, meta: dict, arrays: dict) -> list[Row]:
    """One row for each output that the reference holds; whole numbers must be equal."""
    rows = []
    for name, value in got.items():
        if (expected := arrays.get(f"out.{name}")) is None:
            continue
        value = np.asarray(value).reshape(expected.shape)
        difference = np.abs(value.astype(np.float64) - expected)
        allowed = meta["atol"][name] + RTOL * np.abs(expected)
        exact = expected.dtype.kind in "iu"
        share = float((difference > 0).sum()) if exact else float((difference / allowed).max())
        rows.append((name, float(difference.max()), share))
    return rows


def summary(name: str, x_nchw: np.ndarray) -> dict[str, np.ndarray]:
    """What the reference keeps of a large output."""
    flat = x_nchw.reshape(-1)
    picks = {f"{name}.slice{n}": flat[np.linspace(0, flat.size - 1, n).astype(int)] for n in (32, 512)}
    return {name: x_nchw, f"{name}.mean": flat.mean(), f"{name}.std": flat.std(ddof=1), **picks}


def vq16(folder: pathlib.Path, images=(0, 1, 2)) -> list[Row]:
    """LlamaGen's VQ-16 (72M parameters) on images of 64 x 64, 48 x 80 and 256 x 256."""
    weights, meta, arrays = converted("llamagen_vq16_full", "llamagen_vq16", "llamagen-vq", folder)
    tokenizer = load_tokenizer(weights)

    @jax.jit
    def run(network, images_bhwc, codes_bhw):
        z_bhwd = network.latents(images_bhwc)
        quantized = network.quantize(z_bhwd)
        pixels = network.decode(codes_bhw)
        return quantized.codes_bhw, (network.encoder(images_bhwc), z_bhwd, quantized.z_bhwd, pixels)

    rows = []
    for i in images:
        image = generated(meta["generated_inputs"][f"img{i}"]).transpose(0, 2, 3, 1)
        codes, outputs = run(tokenizer, image, arrays[f"in.codes{i}"].astype(np.int32))
        got = {f"indices{i}": codes}
        for name, value in zip(("enc", "z", "quant", "rec_codes"), outputs, strict=True):
            got |= summary(f"{name}{i}", np.asarray(value).transpose(0, 3, 1, 2))
        rows += compare(got, meta, arrays)
    return rows


def gpt_b(folder: pathlib.Path) -> list[Row]:
    """MaskGIL's generator B (111M parameters), with and without dropped labels."""
    weights, meta, arrays = converted("maskgil_gpt_b", "maskgil_gpt_b", "maskgil", folder)
    model, h = load_generator(weights), meta["hparams"]
    tokens = jnp.asarray(arrays["in.idx"].reshape(2, -1), jnp.int32)
    label = arrays["in.cond"]
    dropped = np.where(arrays["in.drop_label"], h["num_classes"], label)

    @jax.jit
    def run(network, label_b):
        hidden = network.hidden(tokens, ClassCondition(label_b))
        logits = network.logits(hidden)
        at = logits[:, jnp.asarray(h["logit_positions"]), ::16]  # of the vocabulary, every 16th is kept
        return hidden, {
            "at": at,
            "lse": jax.nn.logsumexp(logits, axis=-1),
            "argmax": logits.argmax(-1),
            "mean": logits.mean(-1),
        }

    got = {}
    for name, labels in (("logits", label), ("logits_drop", dropped)):
        hidden, parts = run(model, jnp.asarray(labels, jnp.int32))
        got |= {f"{name}_{part}": value for part, value in parts.items()}
        if name == "logits":  # of the three positions kept, the last is the class token, which ends here
            image_tokens = [position for position in h["sel_positions"] if position < tokens.shape[1]]
            arrays["out.h_norm"] = arrays["out.h_norm"][:, : len(image_tokens)]
            got["h_norm"] = hidden[:, jnp.asarray(image_tokens)]
    return compare(got, meta, arrays)


CASES = {"vq16": vq16, "gpt_b": gpt_b}


def main() -> None:
    """Prints every output's largest difference and the allowed one; exit code 1 if one is outside."""
    jax.config.update("jax_default_matmul_precision", "highest")
    outside = 0
    for name in sys.argv[1:] or CASES:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rows = CASES[name](pathlib.Path(folder))
        print(f"{name}: {CASES[name].__doc__} {time.perf_counter() - began:.0f} s")
        print(f"{'output':<20} {'difference':>10} {'of allowed':>10}")
        for what, difference, share in rows:
            print(f"{what:<20} {difference:>10.2g} {share:>10.2f}")
            outside += share > 1 or (what.startswith("indices") and share > 0)
    sys.exit(1 if outside else 0)


if __name__ == "__main__":
    main()
