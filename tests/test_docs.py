"""The documentation: links, commands, options and code in it are real, its prose is short, and the site builds."""

import ast
import functools
import importlib
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from maskgil_jax.cli import make_parser
from maskgil_jax.commands.run_files import read_run_file

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = {"reference/cli.md", "reference/run_files.md"}  # by docs/hooks.py
COLUMNS = 120

# Words that the documentation does without; CONTRIBUTING.md has the rule.
RETIRED = (
    r"laws?|born|dearest|doubt|judges?|heat|strangers?|rooms?|doors?|guests?|walks?|sign of life|whole or not at all|put aside|"
    r"throw away|surest"
)


def page_id(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def lines_of(path: pathlib.Path) -> tuple[tuple[int, str, str | None], ...]:
    """(line number, line, language of the code block it is in or None) of a page; the fences are left out."""
    found, language = [], None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            language = None if language is not None else fence[1]
            continue
        found.append((number, line, language))
    assert language is None, f"{path}: a code block is not closed"
    return tuple(found)


def blocks_of(path: pathlib.Path) -> list[tuple[int, str, str]]:
    """(number of the first line, language, text) of every code block."""
    blocks: list[tuple[int, str, str]] = []
    last = None
    for number, line, language in lines_of(path):
        if language is None:
            continue
        if last is not None and last == number - 1 and blocks[-1][1] == language:
            blocks[-1] = (*blocks[-1][:2], f"{blocks[-1][2]}\n{line}")
        else:
            blocks.append((number, language, line))
        last = number
    return blocks


def commands_of(path: pathlib.Path) -> list[tuple[int, list[str]]]:
    """(line number, words) of every shell command in the code blocks: continued lines joined, `&&` split,
    comments left out."""
    found = []
    for number, language, text in blocks_of(path):
        if language not in ("", "bash"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if not re.match(r"(\.venv/bin/)?[a-z][\w./-]* ", f"{line} "):
                continue  # a picture, not a command
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    found.append((number, words))
                    words = []
    return found


def program_commands(program: str) -> list:
    """One test parameter for each command line of `program` in the documentation."""
    return [
        pytest.param(words[1:], id=f"{page_id(path)}:{number}: {' '.join(words)}")
        for path in PAGES
        for number, words in commands_of(path)
        if words[0].removeprefix(".venv/bin/") == program
    ]


@functools.cache
def slugs_of(path: pathlib.Path) -> tuple[str, ...]:
    """The anchors of a page's headings, by the rule that GitHub and mkdocs share for plain headings."""
    found = []
    for _, line, language in lines_of(path):
        heading = re.match(r"#+ +(.+)", line)
        if heading and language is None:
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
            found.append(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip()))
    return tuple(found)


def links_of(path: pathlib.Path) -> list[tuple[int, str]]:
    """(line number, target) of the links and images of a page.

    GitHub resolves `../../actions/workflows/NAME` in a README to the runs and the badge of .github/workflows/NAME.
    """
    return [
        (number, re.sub(r"^\.\./\.\./actions/(workflows/\w+\.yml)(/badge\.svg)?$", r".github/\1", target))
        for number, line, language in lines_of(path)
        if language is None
        for target in re.findall(r"(?:\]\(|\bsrc=\")([^)\s\"]+)", re.sub(r"`[^`]*`", "", line))
    ]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_resolve(path):
    for number, target in links_of(path):
        if "://" in target or target.startswith("mailto:"):
            continue
        where, _, anchor = target.partition("#")
        file = (path.parent / where).resolve() if where else path
        if file.is_relative_to(ROOT / "docs") and file.relative_to(ROOT / "docs").as_posix() in GENERATED:
            continue
        assert file.exists(), f"{page_id(path)}:{number}: there is no {target}"
        if anchor:
            assert slugs_of(file).count(anchor) == 1, f"{page_id(path)}:{number}: no single heading {anchor!r} in {file.name}"


def test_links_do_not_leave_the_repository():
    for path in PAGES:
        for number, target in links_of(path):
            inside = "://" in target or (path.parent / target.partition("#")[0]).resolve().is_relative_to(ROOT)
            assert inside, f"{page_id(path)}:{number}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_lines_are_short(path):
    """Tables and the targets of links may be longer."""
    for number, line, language in lines_of(path):
        shown = line if language is not None else re.sub(r"\]\([^)]*\)", "]", line)
        if language is not None or not line.startswith("|"):
            assert len(shown) <= COLUMNS, f"{page_id(path)}:{number}: {len(shown)} columns"


@pytest.mark.parametrize("path", [p for p in PAGES if "results" not in p.parts and "design" not in p.parts], ids=page_id)
def test_how_to_pages_hold_no_cycle_tables(path):
    for number, line, language in lines_of(path):
        assert language is not None or not re.match(r"\|.*\bcycles\b.*\d+(\.\d+)? ms", line), f"{page_id(path)}:{number}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_retired_words_are_absent(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = re.sub(r"### Renamed.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"^#+ How we write\n.*?(?=\n#)", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(rf"(?i)\b(?:{RETIRED})\b", text)
    assert not found, f"{page_id(path)}: {sorted({word.lower() for word in found})}"


@pytest.mark.parametrize("words", program_commands("maskgil"))
def test_maskgil_commands_parse(words, capsys):
    parser, rest = make_parser().find(words)
    if parser.commands and set(rest) <= {"--version"}:
        with pytest.raises(SystemExit) as end:
            parser.parse_args(rest)
        assert end.value.code == 0, capsys.readouterr().err
        return
    try:
        args, overrides = parser.parse_known_args(rest)
    except SystemExit as end:  # --list prints and ends
        assert end.code == 0, capsys.readouterr().err
        return
    assert not overrides or args.takes_overrides, f"unknown options {overrides}"
    config = getattr(args, "config", None) or getattr(args, "name", None)
    if args.takes_overrides and config:
        read_run_file(config, overrides)
    else:
        assert not overrides, f"{overrides}: overrides without --config"


def launched() -> list:
    """The commands that hand options to `maskgil train`: those of launch/."""
    return [
        pytest.param(words, id=f"{page_id(path)}:{number}: {' '.join(words)}")
        for path in PAGES
        for number, words in commands_of(path)
        if any(word.startswith("launch/") for word in words[:3])
    ]


@pytest.mark.parametrize("words", launched())
def test_launch_scripts_get_options_of_their_run_file(words):
    script = next(word for word in words if word.startswith("launch/"))
    assert (ROOT / script).is_file()
    read_run_file(words[words.index("--config") + 1], [word for word in words if word.startswith("--config.")])


def module_commands() -> list:
    """The commands `python -m MODULE ...` of the repository, and scripts called by their path."""
    found = []
    for path in PAGES:
        for number, words in commands_of(path):
            if words[0].removeprefix(".venv/bin/") == "python" and words[1] != "-c":
                found.append(pytest.param(words[1:], id=f"{page_id(path)}:{number}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize("words", module_commands())
def test_python_commands_name_real_modules_and_options(words):
    if words[0] == "-m":
        module, options = words[1], words[2:]
        if module.partition(".")[0] not in ("benchmarks", "tests", "maskgil_jax"):
            assert importlib.util.find_spec(module)
            return
        base = ROOT / module.replace(".", "/")
        file = base / "__main__.py" if base.is_dir() else base.with_suffix(".py")
    else:
        file, options = ROOT / words[0], words[1:]
    assert file.is_file(), f"{file} is missing"
    text = file.read_text(encoding="utf-8")
    if "import options" in text or "options(" in text:  # the options that benchmarks have in common
        text += (ROOT / "benchmarks" / "measure.py").read_text(encoding="utf-8")
    for option in options:
        if option.startswith("--"):
            assert f'"{option.partition("=")[0]}"' in text, f"{file.name} has no option {option}"


@functools.cache
def option_names() -> frozenset[str]:
    """`config.x.y` of every shipped run file."""
    names: set[str] = set()

    def collect(prefix: str, values) -> None:
        for name, value in values.items():
            names.add(f"{prefix}.{name}")
            if hasattr(value, "items"):
                collect(f"{prefix}.{name}", value)

    for file in sorted((ROOT / "configs").glob("*.py")):
        if not file.name.startswith("_"):
            collect("config", read_run_file(str(file), []))
    return frozenset(names)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_options_of_run_files_exist(path):
    """Also those in running text and tables; `--config.x.y` is the placeholder for any."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = re.sub(r"### Renamed.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    for name in re.findall(r"--(config(?:\.\w+)+)", text):
        assert name in option_names() or name in ("config.x.y", "config.SECTION.NAME"), f"{page_id(path)}: no option {name}"


def python_blocks() -> list:
    return [
        pytest.param(text, id=f"{page_id(path)}:{number}")
        for path in PAGES
        for number, language, text in blocks_of(path)
        if language == "python"
    ]


@pytest.mark.parametrize("text", python_blocks())
def test_python_blocks_compile_and_import_real_names(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("maskgil_jax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_named_modules_and_files_exist(path):
    """`maskgil_jax.a.b` and paths such as `configs/demo.py` in the text are real."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":  # the table of modules that moved
        text = re.sub(r"Modules that are not public names.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    for name in re.findall(r"`(maskgil_jax(?:\.\w+)+)", text):
        module, _, attribute = name.rpartition(".")
        found = importlib.util.find_spec(module) and (
            hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(name)
        )
        assert found, f"{page_id(path)}: there is no {name}"
    for name in re.findall(r"`((?:configs|tests|benchmarks|launch|docs|notebooks)/[\w/.-]+\.\w+)[:`]", text):
        assert (ROOT / name).exists(), f"{page_id(path)}: there is no {name}"


def test_pages_named_in_the_source_exist():
    sources = [
        p for folder in ("maskgil_jax", "benchmarks", "configs", "launch", "tests") for p in (ROOT / folder).rglob("*.*")
    ]
    for path in sources:
        if path.suffix in (".py", ".sh", ".sbatch"):
            for name in re.findall(r"docs/[\w/]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / name).is_file(), f"{page_id(path)}: there is no {name}"


def test_newcomer_commands_stand_in_the_readme():
    commands = [line for _, line, language in lines_of(ROOT / "README.md") if language is not None]
    install = "python3 -m venv .venv && .venv/bin/pip install -c requirements.lock -e"
    assert f"{install} . && .venv/bin/maskgil demo" in commands
    assert f"{install} '.[test]' && .venv/bin/python -m pytest" in commands


@pytest.mark.slow
def test_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra [docs]")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "reference/api/index", "reference/cli/index", "reference/run_files/index"):
        assert (tmp_path / "site" / f"{page}.html").stat().st_size > 5000
