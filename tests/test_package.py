"""What an installed package promises: an instant import, the public names, one version, a command, its data."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest

import maskgil_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ("jax", "flax", "numpy", "torch", "tensorflow", "tensorflow_datasets", "PIL", "gradio", "matplotlib", "scipy", "orbax")

# The public names and, for functions and dataclasses, the arguments that outside callers rely on, in order.
PUBLIC = {
    "BertConfig": None,
    "CausalConfig": ("guidance", "temperature", "top_k", "top_p", "cfg_interval"),
    "ClassCondition": ("label_b",),
    "DecodeConfig": (
        *("steps", "schedule", "plan", "guidance", "guidance_ramp", "order"),
        *("temperature", "choice_temperature", "top_k", "top_p", "remask"),
    ),
    "LlamaConfig": None,
    "MagvitConfig": None,
    "Pipeline": None,
    "TextCondition": ("features_btd", "mask_bt"),
    "TrainState": ("step", "params", "ema", "opt_state"),
    "VQConfig": None,
    "buckets": ("side", "patch", "max_ratio"),
    "corrupt": ("key", "tokens_bl", "schedule", "mask_id"),
    "decode": ("generator", "condition", "key", "cfg", "tokens_bl", "grid"),
    "decode_causal": ("generator", "condition", "key", "cfg", "tokens_bn", "grid"),
    "decode_hybrid": ("ar", "generator", "condition", "key", "ar_cfg", "cfg", "ratio", "grid"),
    "load": ("path", "ar"),
    "load_generator": ("path",),
    "load_tokenizer": ("path",),
    "make_mesh": ("data", "fsdp", "tensor"),
    "masked_cross_entropy": ("logits_blv", "targets_bl", "mask_bl", "label_smoothing", "unmasked_weight"),
    "nearest_bucket": ("size", "buckets"),
    "reveal_counts": ("plan", "schedule", "steps", "num_masked"),
    "shardings": ("tree", "mesh"),
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    """Nothing heavy comes with `import maskgil_jax`, and a DecodeConfig needs none of it either."""
    code = f"import sys, maskgil_jax; maskgil_jax.DecodeConfig(); print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name(name):
    value = getattr(maskgil_jax, name)
    expected = PUBLIC[name]
    if expected is not None:
        found = tuple(inspect.signature(value).parameters)
        assert found[: len(expected)] == expected, f"{name}{found}: the published order is {expected}"


def test_no_name_is_hidden_or_extra():
    assert set(maskgil_jax.__all__) == {*PUBLIC, "__version__"}
    assert set(maskgil_jax.__all__) <= set(dir(maskgil_jax))
    with pytest.raises(AttributeError, match="no attribute 'load_tokeniser'"):
        maskgil_jax.load_tokeniser  # noqa: B018


def test_star_import_and_editors_see_the_same_names():
    """The TYPE_CHECKING block, `__all__` and the table of homes agree, name for name and home for home."""
    source = inspect.getsource(maskgil_jax).partition("if TYPE_CHECKING")[2]
    shown = {
        name.strip(): home
        for home, names in re.findall(r"^    from (\S+) import (.+)$", source, flags=re.MULTILINE)
        for name in names.split(",")
    }
    assert shown == maskgil_jax._LAZY_IMPORTS


def test_version():
    version = maskgil_jax.__version__
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "maskgil_jax.__version__"}
    assert importlib.metadata.version("maskgil-jax") == version, "installed from another version: run pip install -e . again"
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest and newest[1] == version, "CHANGELOG.md must open with this version"


def test_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="maskgil")
    assert command.value == "maskgil_jax.cli:main"
    assert callable(command.load())


def test_lock_pins_every_dependency():
    """Each requirement is pinned exactly in requirements.lock, at or above its floor, and no index is named there."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", pin) for pin in pins), "only NAME==VERSION lines"
    locked = {canonical(name): version for name, version in (pin.split("==") for pin in pins)}
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *extras["test"]]:
        name, _, floor = requirement.partition(">=")
        assert floor, f"{requirement}: needs a floor"
        assert canonical(name) in locked, f"{name} is not in requirements.lock"
        assert numbers(locked[canonical(name)]) >= numbers(floor), f"{name}: locked below its floor {floor}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def test_demo_needs_no_extra():
    """Its prompts are read by `tokenizers`, which a plain installation must bring."""
    needed = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["project"]["dependencies"]}
    assert "tokenizers" in needed


def test_wheel_stays_below_45_mb():
    """Every file of the package, compressed one by one as in a wheel."""
    files = [file for file in (ROOT / "maskgil_jax").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    sizes = {file.relative_to(ROOT): len(zlib.compress(file.read_bytes(), 1)) for file in files}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    assert sum(sizes.values()) < 45e6, f"largest: {', '.join(f'{file} {sizes[file] / 1e6:.1f} MB' for file in largest)}"
