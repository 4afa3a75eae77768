"""FLOPs of a traced program, counted on its jaxpr: loops count as often as they run,
matrix products apart from the rest."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclasses.dataclass(frozen=True)
class Flops:
    """`products`: of matrix products and convolutions, two a multiply-add. `others`: one per output element."""

    products: float = 0.0
    others: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.others + other.others)

    def times(self, count: float) -> Flops:
        return Flops(self.products * count, self.others * count)


# Operations that only rename, move or create values.
MOVES = {
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "concatenate", "slice", "dynamic_slice", "dynamic_update_slice"),
    *("gather", "scatter", "pad", "rev", "copy", "convert_element_type", "bitcast_convert_type", "iota", "stop_gradient"),
    *("sharding_constraint", "device_put", "random_wrap", "random_unwrap", "optimization_barrier", "split"),
}


def count_flops(jaxpr: Any) -> Flops:
    """Of a `ClosedJaxpr` or `Jaxpr`, for the whole program over all devices.

    A `cond` counts as its most expensive branch.

    Raises a `ValueError` for a `while` loop, whose trip count is unknown (a `fori_loop` with fixed bounds
    is a `scan`).
    """
    return sum((_of(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns), Flops())


def _of(equation) -> Flops:
    name, parameters = equation.primitive.name, equation.params
    out = sum(math.prod(v.aval.shape) for v in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return Flops(products=2.0 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return Flops(products=2.0 * out * math.prod(kernel) / out_channels)
    if name == "scan":
        return count_flops(parameters["jaxpr"]).times(parameters["length"])
    if name == "cond":
        return max((count_flops(branch) for branch in parameters["branches"]), key=lambda f: f.products + f.others)
    if name == "while":
        raise ValueError("a while loop of unknown length cannot be counted")
    inner = [p for p in parameters.values() if isinstance(p, ClosedJaxpr | Jaxpr)]
    if inner:  # jit, remat, custom derivatives: one body each
        return count_flops(inner[0])
    return Flops() if name in MOVES else Flops(others=float(out))
