"""The device mesh (`data x fsdp x tensor`) and the path rules that say how every array lies on it."""

from __future__ import annotations

import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskgil_jax.config import require

AXES = ("data", "fsdp", "tensor")

# (end of the path, spec): the first match wins and no match is an error. Parameters, EMA and optimizer moments share the
# rules, since the paths of the latter two end in the parameter's. `layers/` arrays have a leading axis for the stacked layers.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/.*/(q|k|v|gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/.*/(o|down)/kernel", P(None, "tensor", "fsdp")),
    (r"layers/.*/(scale|bias)", P()),
    (r"(tokens|classes|positions)/embedding", P(None, "fsdp")),
    (r"(head|first_up|first_down|last_linear)/kernel", P("fsdp", "tensor")),
    (r"head_bias|scale|bias|step|count|mu|nu|last_used|waiting", P()),
    (r"norm_mean|accepted|skipped_in_a_row", P()),
    # Convolutional networks (tokenizer, discriminator, classifier) are small: every device holds them whole.
    (r"kernel|codebook(/embedding)?|mean|var", P()),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; one of the sizes may be -1 and takes what is left. Their product must be the device count."""
    sizes, count = [data, fsdp, tensor], jax.device_count()
    require(sizes.count(-1) <= 1, f"mesh: only one axis may be -1, got {dict(zip(AXES, sizes, strict=True))}")
    require(all(s == -1 or s >= 1 for s in sizes), f"mesh: sizes must be positive, got {dict(zip(AXES, sizes, strict=True))}")
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    named = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    require(-1 not in sizes and sizes[0] * sizes[1] * sizes[2] == count, f"mesh: {named} does not make {count} devices")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def path_name(path) -> str:
    """A pytree path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree, mesh: Mesh):
    """A `NamedSharding` per leaf of `tree` (arrays or shapes) by the path rules. Raises on a path without a rule or an axis
    that its mesh axes do not divide."""

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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over the data and fsdp axes."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def global_batch(batch, mesh: Mesh):
    """Process-local NumPy arrays (this process's rows) -> global sharded arrays."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # this transfer is meant
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
