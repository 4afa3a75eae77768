"""Published figures of accelerators, and compile-only topologies of them."""

from __future__ import annotations

import dataclasses
import os
import re

import jax

from maskgil_jax.config import ConfigError, choose, require


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip. flops: bfloat16, a second. memory: HBM, bytes. bandwidth: HBM, bytes a second.

    links: bytes a second that a chip sends to its neighbours, all ports together (half the published figure, which
    counts both directions). clock: cycles a second with which the compiler's cycle counts are turned into time; it is
    not published for all of them and follows from peak FLOPs and the size and number of matrix units.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float
    clock: float


# Source: the pages of Cloud TPU's documentation on v5e, v5p and v6e, as of 2026.
CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 819e9, 200e9, 1.5e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1638e9, 400e9, 1.75e9),
}


def open_topology(text: str) -> tuple[list, Chip | None]:
    """ "v5e:16x16" -> (its 256 devices, compile-only, and their chip); "cpu:8" -> (8 of this machine's, None).

    Raises a `ConfigError` for an unknown name, too few CPU devices, or without `libtpu` (extra [tpu]).
    """
    kind, _, size = text.partition(":")
    choose("--topology", kind, (*CHIPS, "cpu"))
    if kind == "cpu":
        require(size.isdigit() and int(size) >= 1, f"--topology: expected cpu:N, got {text!r}")
        devices = jax.devices("cpu")
        require(
            len(devices) >= int(size),
            f"--topology: {text} needs {size} CPU devices, there are {len(devices)}: set JAX_NUM_CPU_DEVICES={size}",
        )
        return devices[: int(size)], None
    require(bool(re.fullmatch(r"\d+(x\d+){1,2}", size)), f"--topology: expected {kind}:ROWSxCOLUMNS, got {text!r}")
    # Without these the TPU library asks a metadata server; values that are set already are kept.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    # A single chip is part of a host with more; all other topologies consist of whole hosts.
    part = {"chips_per_host_bounds": (1, 1, 1)} if set(size) <= set("1x") else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=text, **part)
    except Exception as error:  # RuntimeError, JaxRuntimeError or NotImplementedError, by version and cause
        reason = " ".join(str(error).split())[:200]
        hint = (
            "pip install 'maskgil_jax[tpu]'"
            if "libtpu" in reason or "known backends" in reason
            else "is it a shape they come in?"
        )
        raise ConfigError(f"--topology: cannot plan for {text} ({reason}); {hint}") from None
    return list(topology.devices), CHIPS[kind]
