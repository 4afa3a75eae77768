"""The device mesh (`data x fsdp x tensor`) and the path rules that shard every array over it."""

from __future__ import annotations

import re

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskgil_jax.config import require

AXES = ("data", "fsdp", "tensor")

# (end of the path, spec): the first match wins and no match is an error. Parameters, EMA and optimizer moments share
# the rules, since the paths of the latter two end in the parameter's. `layers/` arrays have a leading axis for the
# stacked layers.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/(.*/)?(q|k|v|gate|up|modulation)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/.*/(o|down)/kernel", P(None, "tensor", "fsdp")),
    (r"layers/.*/(scale|bias)", P()),
    (r"(tokens|classes|positions|registers)/embedding", P(None, "fsdp")),
    (r"(head|first_up|first_down|last_linear|modulation|caption_up|caption_down)/kernel", P("fsdp", "tensor")),
    (r"head_bias|caption_null|caption_null_mask|scale|bias|step|count|mu|nu|last_used|waiting", P()),
    (r"norm_mean|accepted|skipped_in_a_row|ns_coeffs", P()),
    (r"lora_a|lora_b", P()),  # low-rank factors are small
    # Convolutional networks (tokenizer, discriminator, classifier) are small: every device holds them whole.
    (r"kernel|codebook(/embedding)?|mean|var", P()),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, dcn_data: int = 1, *, devices=None) -> Mesh:
    """A mesh over all devices, or over `devices`; one of the sizes may be -1 and takes what is left.

    Their product must be the number of devices.

    dcn_data: slices (or, where devices know no slices, processes) joined by a slow network. The other sizes are then
    those within one slice, and the data axis is `dcn_data` times as long: only gradients cross the slow network.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes, count = [data, fsdp, tensor], len(devices)
    require(dcn_data >= 1 and count % dcn_data == 0, f"mesh: dcn_data={dcn_data} slices cannot share {count} devices equally")
    count //= dcn_data
    require(sizes.count(-1) <= 1, f"mesh: only one axis may be -1, got {dict(zip(AXES, sizes, strict=True))}")
    require(all(s == -1 or s >= 1 for s in sizes), f"mesh: sizes must be positive, got {dict(zip(AXES, sizes, strict=True))}")
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    named = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    require(-1 not in sizes and sizes[0] * sizes[1] * sizes[2] == count, f"mesh: {named} does not make {count} devices")
    return Mesh(_placed(sizes, dcn_data, devices), AXES, (AxisType.Auto,) * 3)


def _placed(sizes: list[int], dcn_data: int, devices: list) -> np.ndarray:
    """The devices in the shape of the mesh, neighbours in it being connected in hardware."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    by_process = slices != dcn_data > 1 and jax.process_count() == dcn_data
    require(
        slices == dcn_data or by_process,
        f"mesh: dcn_data={dcn_data}, but there are {slices} slice(s) and {jax.process_count()} process(es)",
    )
    split = dict(allow_split_physical_axes=True)  # since not every size is a product of sides of a TPU torus
    if dcn_data == 1:
        return mesh_utils.create_device_mesh(sizes, devices, **split)
    return mesh_utils.create_hybrid_device_mesh(sizes, (dcn_data, 1, 1), devices, process_is_granule=by_process, **split)


def path_name(path) -> str:
    """A pytree path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree, mesh: Mesh):
    """A `NamedSharding` per leaf of `tree` (arrays or shapes) by the path rules.

    Raises on a path without a rule or an axis that its mesh axes do not divide.
    """

    def of(path, leaf):
        name = path_name(path)
        spec = next((spec for pattern, spec in RULES if re.search(rf"(^|/)({pattern})$", name)), None)
        if spec is None:
            raise ValueError(f"{name}: no sharding rule for this array")
        for axis, mesh_axis in enumerate(spec):
            size = mesh.shape[mesh_axis] if mesh_axis else 1
            if leaf.shape[axis] % size:
                raise ValueError(
                    f"{name}: axis {axis} of shape {tuple(leaf.shape)} is not a multiple of mesh axis {mesh_axis}={size}; "
                    "choose other mesh sizes"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, tree)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Batches are split over the data and fsdp axes."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def _mesh_of(x: jax.Array) -> AbstractMesh | None:
    """Inside a jitted function: the mesh of `make_mesh` that `x` lies on; None if it lies on none."""
    mesh = jax.typeof(x).sharding.mesh
    return mesh if set(AXES) <= set(mesh.axis_names) else None


def constrain_batch(x: jax.Array) -> jax.Array:
    """Inside a jitted function: constrains `x`, whose first axis is the batch, to the sharding of batches.

    Otherwise the compiler may shard activations over their columns, as the parameters are, and keep every image of the
    batch on every device. Without a mesh, or where the batch cannot be split evenly, `x` is returned unconstrained.
    """
    mesh = _mesh_of(x)
    if mesh is None or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def constrain_heads(cache_bnshk: jax.Array, like: jax.Array) -> jax.Array:
    """Inside a jitted function: a cache of keys or values, split over the batch and over heads on the mesh of `like`.

    Axes that the mesh does not divide are left whole. Without a mesh, the cache is returned unconstrained.
    """
    mesh = _mesh_of(like)
    if mesh is None:
        return cache_bnshk
    batch = ("data", "fsdp") if cache_bnshk.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    heads = "tensor" if cache_bnshk.shape[3] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(cache_bnshk, NamedSharding(mesh, P(batch, None, None, heads)))


def gather_embeddings(params: dict) -> dict:
    """Inside a jitted function: replicates the tables of look-ups (`.../embedding`) on every device.

    They are stored sharded over their columns, and so are the results of look-ups in them, where layers need results
    sharded over the batch. The compiler converts one to the other by gathering all activations of the batch on every
    device.
    """

    def of(path, leaf):
        mesh = _mesh_of(leaf)
        if mesh is None or not path_name(path).endswith("embedding"):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, replicated(mesh))

    return jax.tree_util.tree_map_with_path(of, params)


def place(tree, sharding: NamedSharding):
    """Arrays and keys that every process holds in full -> global arrays with this `sharding`."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def of(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(of(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(of, tree)


def process_shards(owner_dft: np.ndarray, process: int) -> np.ndarray:
    """Which of the data x fsdp shards of a batch the devices of `process` hold; `owner_dft`: each device's process."""
    return np.flatnonzero((owner_dft.reshape(-1, owner_dft.shape[-1]) == process).any(axis=1))


def own_shards(mesh: Mesh) -> np.ndarray:
    """Which shards of a batch this process has to load.

    Neighbours on the mesh need not be neighbours in a machine, and a tensor axis that spans machines gives the same
    shard to several processes.
    """
    return process_shards(np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices), jax.process_index())


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of a global batch that this process's devices hold, ascending."""
    block = batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    return tuple(int(shard) * block + row for shard in own_shards(mesh) for row in range(block))


def global_batch(batch, mesh: Mesh):
    """NumPy arrays of this process's rows (`local_rows`) -> global sharded arrays."""
    sharding, own = batch_sharding(mesh), own_shards(mesh)

    def of(rows):
        block = len(rows) // len(own)

        def shard(index):
            place = int(np.searchsorted(own, (index[0].start or 0) // block)) * block
            return rows[place : place + block]

        shape = (block * mesh.shape["data"] * mesh.shape["fsdp"], *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    with jax.transfer_guard_host_to_device("allow"):  # this transfer is intended
        return jax.tree.map(of, batch)


def to_host(tree):
    """Global arrays, whole, as NumPy on every process. All processes must call it; one array is gathered at a time."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)
