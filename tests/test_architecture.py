"""The import levels of docs/architecture.md against the source, and what no file may contain."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from pathlib import Path

import pytest

import maskgil_jax

ROOT = Path(__file__).resolve().parents[1]

TABLE = re.compile(r"^\| (\d+) \| `(\w+)` \| .* \|([^|]*)\|$", re.MULTILINE)


def stated() -> tuple[dict[str, int], set[tuple[str, str]]]:
    """(package -> level, imports within a level) of the table in docs/architecture.md."""
    rows = TABLE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    levels = {name: int(level) for level, name, _ in rows}
    return levels, {(name, other) for _, name, beside in rows for other in re.findall(r"`(\w+)`", beside)}


LEVELS, WITHIN = stated()
# (package, what it must not import even if its level allows it, why).
FORBIDDEN_IMPORTS = [
    ("config", "maskgil_jax", "config knows nothing of the package"),
    ("decoding", "maskgil_jax.tokenizers", "decoders turn tokens into tokens"),
    ("decoding", "maskgil_jax.networks", "decoders know networks only by calling them"),
    ("tokenizers", "maskgil_jax.data", "tokenizers see arrays"),
    ("training", "maskgil_jax.pipelines", "a trainer does not know the object that users hold"),
    *(
        ("decoding", f"maskgil_jax.models.{name}", "decoders know networks only by calling them")
        for name in ("adaln", "experimental", "bert", "layers", "llama", "maskgit", "rope")
    ),
]
# Outside packages that only some packages may import: name -> (which, why).
RESTRICTED_PACKAGES = {
    "torch": (("convert",), "only convert/ writes .pt files"),
    "tensorflow": ((), "nothing here needs TensorFlow"),
    "jax._src": ((), "private names of JAX change without notice"),
    "clu.metric_writers": ((), "it imports TensorFlow"),
    "clu.periodic_actions": ((), "it imports TensorFlow"),
    "tensorflow_datasets": (("data",), "images enter through data/"),
    "PIL": (
        ("files", "data", "training", "evaluation", "commands", "pipelines", "web"),
        "networks and decoders see arrays",
    ),
    **dict.fromkeys(
        ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), ((), "files from outside never run code")
    ),
}
# Slow to import, or an extra: inside the function that needs them, so the command starts at once and works without.
LATE = {"tokenizers", "torch", "tensorflow_datasets", "matplotlib", "scipy", "gradio", "huggingface_hub"}
# Calls that run code from files or strings, and the parts of NNX this package does without: its modules are stateless
# pytrees.
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load"} | {
    f"nnx.{name}" for name in ("jit", "scan", "vmap", "grad", "value_and_grad", "remat", "Optimizer", "Dropout", "BatchNorm")
}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code"}  # may only be given as False
MAX_LINES, MEDIAN_LINES = 350, 150
NO_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}

PACKAGE = sorted((ROOT / "maskgil_jax").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
ALL = [
    *PACKAGE,
    *CONFIGS,
    *(p for package in ("tests", "benchmarks", "launch") for p in sorted((ROOT / package).rglob("*.py"))),
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PUBLIC_NAMES = {f"maskgil_jax.{name}" for name in maskgil_jax.__all__} - {"maskgil_jax.__version__"}
MODULES = {module_of(path): path for path in PACKAGE}


def package_of(module: str) -> str:
    """The package or top-level module that a module belongs to; empty for the package's own __init__."""
    return module.split(".")[1] if "." in module else ""


def imports_of(tree: ast.AST, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, inside functions too.

    `from a import b` gives a.b, relative ones are spelled out.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "import_module"):
            found += [(node.lineno, a.value) for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return found


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def own_imports() -> list[tuple[str, int, str, str]]:
    """(importing module, line, imported module of the package, name as written)
    over the whole package but its __init__."""
    found = []
    for module, path in MODULES.items():
        if module == "maskgil_jax":  # the public names, loaded on first use: it looks up by design
            continue
        for line, name in imports_of(tree_of(path), module, path.name == "__init__.py"):
            if within(name, "maskgil_jax"):
                target = name
                while target not in MODULES and "." in target:
                    target = target.rpartition(".")[0]
                found.append((module, line, target, name))
    return found


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(sorted(problems))


def test_every_package_has_a_level():
    packages = {package_of(m) for m in MODULES} - {"", "__main__"}
    assert packages == set(LEVELS), "docs/architecture.md: the table and the packages differ"


def test_at_most_three_modules_at_the_top_level():
    top = {path.stem for path in (ROOT / "maskgil_jax").glob("*.py")} - {"__init__", "__main__"}
    assert len(top) <= 3, top


def test_imports_go_to_lower_levels_or_as_the_table_says():
    problems, seen = [], set()
    for module, line, target, name in own_imports():
        if target == "maskgil_jax":
            if name in PUBLIC_NAMES:
                problems.append(f"{module}:{line}: {name} by its public name; import it from the module it lives in")
            continue
        low, high = package_of(module), package_of(target)
        if low == high or low == "__main__":
            continue
        if LEVELS[high] == LEVELS[low]:
            seen.add((low, high))
        elif LEVELS[high] > LEVELS[low]:
            problems.append(f"{module}:{line}: imports {name}, from level {LEVELS[low]} to level {LEVELS[high]}")
    report(problems)
    assert seen == WITHIN, (
        "docs/architecture.md: imports within a level that the table has and the source has not, or the reverse"
    )


def test_no_package_imports_what_it_must_not_know():
    report(
        [
            f"{module}:{line}: imports {name}; {why}"
            for module, line, target, name in own_imports()
            for package, closed, why in FORBIDDEN_IMPORTS
            if package_of(module) == package != package_of(target) and within(name, closed)
        ]
    )


@pytest.mark.parametrize("level", ["module", "package"])
def test_no_cycles(level):
    edges: dict[str, set[str]] = {}
    for module, _, target, _ in own_imports():
        a, b = (module, target) if level == "module" else (package_of(module), package_of(target))
        if a != b and b and target != "maskgil_jax":
            edges.setdefault(a, set()).add(b)
    done: set[str] = set()

    def walk(node: str, path: tuple[str, ...]):
        assert node not in path, f"import cycle: {' -> '.join((*path[path.index(node) :], node))}"
        if node not in done:
            for child in sorted(edges.get(node, ())):
                walk(child, (*path, node))
            done.add(node)

    for node in sorted(edges):
        walk(node, ())


def test_outside_packages_stay_in_their_packages():
    problems = []
    for module, path in MODULES.items():
        tree = tree_of(path)
        for line, name in imports_of(tree, module):
            for outside, (packages, why) in RESTRICTED_PACKAGES.items():
                if within(name, outside) and package_of(module) not in packages:
                    problems.append(f"{module}:{line}: imports {name}; {why}")
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        for line, name in imports_of(top, module):
            if name.split(".")[0] in LATE:
                problems.append(f"{module}:{line}: imports {name} for everybody; move it into the function that needs it")
    report(problems)


def test_run_files_import_options_and_other_run_files_only():
    allowed = ("ml_collections", "maskgil_jax.config", "maskgil_jax.configs", *sys.stdlib_module_names)
    report(
        [
            f"{path.name}:{line}: imports {name}; run files import options, run files and ml_collections"
            for path in CONFIGS
            for line, name in imports_of(tree_of(path), path.stem)
            if not any(within(name, package) for package in allowed)
        ]
    )


def test_nothing_runs_code_from_outside():
    problems = []
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                for word in node.keywords:
                    if word.arg in FORBIDDEN_ARGUMENTS and not (
                        isinstance(word.value, ast.Constant) and word.value.value is False
                    ):
                        problems.append(f"{module}:{node.lineno}: {word.arg} may only be False here")
            if isinstance(node, ast.Name | ast.Attribute) and dotted(node) in FORBIDDEN_CALLS:
                problems.append(f"{module}:{node.lineno}: {dotted(node)} is not used in this package")
    report(problems)


def test_files_are_short_and_named_for_what_they_do():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ALL}
    problems = [
        f"{p.relative_to(ROOT)}: {n} lines, at most {MAX_LINES}: split it by topic" for p, n in lines.items() if n > MAX_LINES
    ]
    problems += [f"{p.relative_to(ROOT)}: name the file for what it does" for p in ALL if p.name in NO_NAMES]
    report(problems)
    median = statistics.median(lines[path] for path in PACKAGE)
    assert median < MEDIAN_LINES, f"half of the package's files have {median} lines or more; aim below {MEDIAN_LINES}"
