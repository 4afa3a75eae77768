"""Strict settings for every test: 8 virtual CPU devices, full matmul precision, no silent rank promotion or key reuse.

Programs here run once or twice, so XLA is told not to spend time on optimising them: compiling is most of the suite.
Its older emitters of loops compile two to four times as fast as the ones that go through MLIR. jaxlib 0.11.1 and newer
have neither them nor the flag, which would end the process.
"""

import os

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + ("" if jaxlib.version.__version_info__ >= (0, 11, 1) else " --xla_cpu_use_fusion_emitters=false")
    + " --xla_cpu_parallel_codegen_split_count=1"  # two cores gain nothing, and a lost wake-up in its pool can hang a run
)

import jax
import numpy as np
import pytest
from helpers.launch_stubs import write_stubs
from helpers.tiny_world import classifier_folder, extractor, pipeline_folder, tiny_preset  # noqa: F401
from hypothesis import HealthCheck, settings
from PIL import Image

from maskgil_jax.data.sources import emoji as demo

# Property tests: the same few examples in every run by default; HYPOTHESIS_PROFILE=long searches for new ones.
_SLOW_OK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("default", derandomize=True, max_examples=30, deadline=None, suppress_health_check=_SLOW_OK)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=_SLOW_OK)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def emoji():
    """The held-out drawings, by group."""
    return demo.emoji("test", "group")


@pytest.fixture
def box(tmp_path):
    """A folder with stubs of gcloud, ssh, xpk, maskgil, srun and scontrol."""
    return write_stubs(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, 3 + 2 images of different sizes and formats."""
    rng = np.random.default_rng(0)
    for name, size in [
        ("b/1.png", (40, 30)),
        ("b/2.jpg", (30, 50)),
        ("b/x/3.webp", (33, 33)),
        ("a/1.bmp", (20, 20)),
        ("a/2.gif", (64, 9)),
    ]:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return tmp_path / "set"
