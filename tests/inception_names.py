"""Published names of the FID InceptionV3 -> ours, and its weights by the fixtures' recipe (NumPy only)."""

import math
import re
import zlib

import numpy as np

RULES = (
    (r"num_batches_tracked$", None),
    (r"^fc\.weight$", "fc/kernel"),
    (r"^fc\.bias$", "fc/bias"),
    (r"^Conv2d_(\w+)\.conv\.weight$", r"conv_\1/kernel"),
    (r"^Mixed_(\w+)\.(\w+)\.conv\.weight$", r"mixed_\1/\2/kernel"),
    (r"^Conv2d_(\w+)\.bn\.weight$", r"conv_\1/scale"),
    (r"^Mixed_(\w+)\.(\w+)\.bn\.weight$", r"mixed_\1/\2/scale"),
    (r"^Conv2d_(\w+)\.bn\.bias$", r"conv_\1/bias"),
    (r"^Mixed_(\w+)\.(\w+)\.bn\.bias$", r"mixed_\1/\2/bias"),
    (r"^Conv2d_(\w+)\.bn\.running_(mean|var)$", r"conv_\1/\2"),
    (r"^Mixed_(\w+)\.(\w+)\.bn\.running_(mean|var)$", r"mixed_\1/\2/\3"),
)


def our_name(name: str) -> str | None:
    """The path of a published tensor, or None for one that is not used. The first rule that fits wins; none is an error."""
    for pattern, path in RULES:
        if re.search(pattern, name):
            return None if path is None else re.sub(pattern, path, name)
    raise KeyError(name)


def our_layout(array: np.ndarray) -> np.ndarray:
    """(out, in, h, w) -> (h, w, in, out); (out, in) -> (in, out)."""
    return {4: lambda a: a.transpose(2, 3, 1, 0), 2: np.transpose}.get(array.ndim, lambda a: a)(array)


def recipe_tensor(name: str, shape: tuple[int, ...], recipe: dict) -> np.ndarray:
    """One tensor of the published layout, drawn from its name and the recipe's seed."""
    rule = next(r for r in recipe["rules"] if re.search(r["match"], name))
    mean, std = (
        (rule["mean"], rule["std"]) if rule["kind"] == "uniform" else (0.0, rule["gain"] / math.sqrt(math.prod(shape[1:])))
    )
    rs = np.random.RandomState((zlib.crc32(name.encode("utf-8")) ^ recipe["seed"]) & 0xFFFFFFFF)
    u = rs.random_sample(math.prod(shape))
    return (mean + std * math.sqrt(3.0) * (2.0 * u - 1.0)).astype(np.float32).reshape(shape)
