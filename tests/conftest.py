"""Strict settings for every test: 8 virtual CPU devices, full matmul precision, no silent rank promotion or key reuse.

Programs here run once or twice, so XLA is told not to spend time on optimising them: compiling is most of the suite.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_default_matmul_precision", "highest")
