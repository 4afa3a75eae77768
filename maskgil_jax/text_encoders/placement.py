"""How an encoder's parameters lie on the mesh of `make_mesh`: the rules of the generators,
for weights that are (out, in)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskgil_jax.runtime.mesh import AXES, constrain_batch, path_name

# (end of the path, spec): the first match wins and no match is an error.
RULES: tuple[tuple[str, P], ...] = (
    (r"(q|k|v|gate|up|projection)/weight", P("tensor", "fsdp")),
    (r"(o|down)/weight", P("fsdp", "tensor")),
    (r"embed/weight", P(None, "fsdp")),
    (r"bias|logit_scale|(\w*norm|positions|types|patches|class_token)/weight", P()),
)


def sharding_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of one parameter. An axis that its mesh axis does not divide is held whole: the sizes are given."""
    spec = next((spec for pattern, spec in RULES if re.search(rf"(^|/)({pattern})$", path)), None)
    if spec is None:
        raise ValueError(f"{path}: no sharding rule for this parameter of a text encoder")
    axes = [name if name is None or shape[axis] % mesh.shape[name] == 0 else None for axis, name in enumerate(spec)]
    return NamedSharding(mesh, P(*axes))


def shardings(params: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` per leaf of an encoder's parameters (arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: sharding_of(path_name(path), leaf.shape, mesh), params)


def look_up(table_vd: jax.Array, ids_bt: jax.Array) -> jax.Array:
    """Inside a jitted function: rows (b, t, d) of a table, laid out as batches are.

    The table is split over its columns by the fsdp axis and may hold a billion bytes, so it is not gathered: each
    device looks up its columns for the rows of all its fsdp neighbours, and one all-to-all exchanges columns for rows.
    """
    mesh = jax.typeof(table_vd).sharding.mesh
    if not set(AXES) <= set(mesh.axis_names):
        return table_vd[ids_bt]
    rows, columns = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["fsdp"]
    if ids_bt.shape[0] % rows or table_vd.shape[1] % columns:
        return constrain_batch(table_vd[ids_bt])
    ids_bt = jax.lax.with_sharding_constraint(ids_bt, NamedSharding(mesh, P("data")))
    x = jax.lax.with_sharding_constraint(table_vd[ids_bt], NamedSharding(mesh, P("data", None, "fsdp")))
    return constrain_batch(x)


def putter(mesh: Mesh | None) -> Callable[[str, np.ndarray], jax.Array]:
    """(parameter, host array) -> array on the default device, or on the mesh, each process giving its own part."""
    if mesh is None:
        return lambda path, value: jax.device_put(value)

    def put(path: str, value: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding_of(path, value.shape, mesh), lambda index: value[index])

    return put
