"""Rotary position tables. Pairs are interleaved, (x0, x1), (x2, x3), ..., as in LLaMA's original code and LlamaGen.

Tables are NumPy constants made at trace time in float64, so any grid costs nothing at run time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError


def angles_1d(count: int, head_dim: int, base: float, trained: int | None = None, scaling: str = "none") -> np.ndarray:
    """Angles (count, head_dim / 2): position p times base^(-2k / head_dim).

    `trained` and `scaling` bring a side longer than the trained one back to angles the network knows, with r = count /
    trained:
    "none": nothing; far positions have angles never seen in training.
    "interpolate": positions are divided by r, so the whole side spans the trained angles and neighbours stand closer
    (position interpolation, 2306.15595).
    "ntk": the base grows to base * r^(d / (d - 2)), which slows the slowest pair by r exactly and leaves the fastest as
    it is: neighbours stay apart, far positions stay within the trained range ("NTK-aware" scaling).
    A side up to the trained one is left as it is: all its angles are known.
    """
    ratio = max(1.0, count / trained) if trained else 1.0
    positions = np.arange(count, dtype=np.float64)
    if scaling == "interpolate":
        positions = positions / ratio
    elif scaling == "ntk" and head_dim > 2:  # with one pair, the fastest is all there is
        base = base * ratio ** (head_dim / (head_dim - 2))
    frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return positions[:, None] * frequencies[None]


def angles_2d(
    grid: tuple[int, int], head_dim: int, base: float, trained: tuple[int, int] | None = None, scaling: str = "none"
) -> np.ndarray:
    """Angles (rows * columns, head_dim / 2), raster order: the first half of the pairs turns by row,
    the second by column.

    Rows and columns are scaled each by its own ratio (`angles_1d`), so 16x32 keeps the rows of 16x16 as they are.
    """
    rows, columns = grid
    trained_rows, trained_columns = trained or grid
    row = np.repeat(angles_1d(rows, head_dim // 2, base, trained_rows, scaling), columns, axis=0)
    column = np.tile(angles_1d(columns, head_dim // 2, base, trained_columns, scaling), (rows, 1))
    return np.concatenate([row, column], axis=1)


def rotation_table(
    grid: tuple[int, int],
    head_dim: int,
    base: float,
    *,
    positions: str,
    prefix: int,
    prefix_rotation: str,
    class_position: str,
    trained: tuple[int, int] | None = None,
    scaling: str = "none",
) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), each float32 (tokens + prefix, head_dim / 2), in the order of the sequence.

    Prefix rows are either the identity or, as in LlamaGen, cos = sin = 0: queries and keys vanish there, so the
    prefix is attended with logit 0 whatever it holds. `positions="1d_shifted"` is the published MaskGIL code: its zero
    row comes first although its class token comes last: token 0 vanishes, token i turns by i - 1, the class by the last
    angle.

    `trained`: the training canvas, if not `grid`; `scaling`: see `angles_1d`.

    Raises:
      ConfigError: one-dimensional positions and a canvas other than the trained one. A token's angle is its number in
        raster order there: with other columns, the same angle would be another place, and with other rows the class
        another.
    """
    tokens = grid[0] * grid[1]
    if positions == "1d_shifted":
        known = tuple(trained or grid)
        if known != tuple(grid):
            raise ConfigError(
                f"grid: positions='1d_shifted' number the tokens of {known} canvases, got {tuple(grid)}; "
                "use a Llama with 2-D positions"
            )
        angles = angles_1d(tokens + prefix - 1, head_dim, base)
        prefix, class_position = 1, "first"
    else:
        angles = angles_2d(grid, head_dim, base, trained, scaling)
    cos, sin = np.cos(angles), np.sin(angles)
    cos_prefix = np.full((prefix, head_dim // 2), 0.0 if prefix_rotation == "zero" else 1.0)
    parts = [(cos_prefix, cos), (np.zeros_like(cos_prefix), sin)]
    if class_position == "last":
        parts = [part[::-1] for part in parts]
    cos, sin = (np.concatenate(part).astype(np.float32) for part in parts)
    return cos, sin


def rotation_at(
    row_bl: jax.Array, column_bl: jax.Array, head_dim: int, base: float, prefix: int, prefix_rotation: str
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each float32 (b, prefix + l, head_dim / 2), of tokens whose rows and columns are data.

    Rows of the tables of `rotation_table`, gathered: one compiled program serves every size of a canvas. No side may be
    longer than the number of tokens.
    """
    angles_lk = angles_1d(row_bl.shape[1], head_dim // 2, base)
    cos_prefix = 0.0 if prefix_rotation == "zero" else 1.0
    tables = []
    for table_lk, value in ((np.cos(angles_lk), cos_prefix), (np.sin(angles_lk), 0.0)):
        table = jnp.asarray(table_lk.astype(np.float32))
        tokens_blk = jnp.concatenate([table[row_bl], table[column_bl]], axis=-1)
        prefix_bpk = jnp.full((len(row_bl), prefix, head_dim // 2), value, jnp.float32)
        tables.append(jnp.concatenate([prefix_bpk, tokens_blk], axis=1))
    return tables[0], tables[1]


def rotate(x_blhk: jax.Array, cos_lk: jax.Array | np.ndarray, sin_lk: jax.Array | np.ndarray) -> jax.Array:
    """Turns each interleaved pair of `x_blhk` by its position's angle, in float32; the dtype of the input is kept.

    Tables: (l, k / 2), the same for all images, or (b, l, k / 2).

    A product with a signed permutation brings every entry its pair's other half (exactly: one term of each sum is not
    zero). Arrays of pairs would leave most of a TPU's 128 lanes empty, and its matrix unit has nothing else to do here.
    """
    width = x_blhk.shape[-1]
    swap_kk = np.kron(np.eye(width // 2), [[0, 1], [-1, 0]]).astype(x_blhk.dtype)
    other_blhk = jnp.einsum("blhk,kj->blhj", x_blhk, swap_kk, precision="highest", preferred_element_type=jnp.float32)
    cos, sin = (_pairs(table) for table in (cos_lk, sin_lk))
    return (x_blhk.astype(jnp.float32) * cos + other_blhk * sin).astype(x_blhk.dtype)


def _pairs(table: jax.Array | np.ndarray) -> jax.Array:
    """A table with every angle twice, in a shape that multiplies (b, l, h, k)."""
    doubled = jnp.asarray(table.repeat(2, axis=-1))
    return doubled[None, :, None, :] if doubled.ndim == 2 else doubled[:, :, None, :]
