"""Hooks of the documentation site (mkdocs.yml): generated pages, and links to files outside docs/.

Generated: one reference page a package (its modules' docstrings), the help of every sub-command, the options of run
files, and copies of CHANGELOG.md, CONTRIBUTING.md and SECURITY.md.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "maskgil_jax"
COPIES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def packages() -> dict[str, list[str]]:
    """Sub-package -> its public modules, by name; modules of the top level under "maskgil_jax"."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or "configs" in parts or "emoji" in parts[:-1]:
            continue
        package = parts[1] if len(parts) > 2 else "maskgil_jax"
        found.setdefault(package, []).append(".".join(parts))
    return found


def package_page(package: str, modules: list[str]) -> str:
    """The reference page of a package: a section for each module."""
    title = "Top level" if package == "maskgil_jax" else f"maskgil_jax.{package}"
    return f"# {title}\n\n" + "\n".join(f"::: {module}\n    options:\n      show_root_full_path: true\n" for module in modules)


def command_help() -> str:
    """The help of every sub-command, also of those below another one, with the rare options."""
    from maskgil_jax.cli import make_parser

    lines = ["# Command line", "", "Generated from the parsers of `maskgil COMMAND --help-all`.", ""]

    def add(parser) -> None:
        for action, text in parser.rare.items():
            action.help = text
        lines.extend([f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""])
        for sub in parser.commands.values():
            add(sub)

    add(make_parser())
    return "\n".join(lines)


def option_tables() -> str:
    """The options of run files and of decoding, from their dataclasses."""
    from maskgil_jax.config.training import SECTIONS, sections_of

    lines = [
        "# Options of run files",
        "",
        "`--config.SECTION.NAME=VALUE` changes an option. `maskgil configs NAME` prints those",
    ]
    lines += ["of one run file with their values. The defaults below are those of the dataclasses.", ""]
    for task in SECTIONS:
        lines += [f"## Training of a {task}", ""]
        for section, kind in sections_of(task).items():
            lines += [f"### {task}: {section or 'top'}", "", *_table(kind, section)]
    lines += ["## Decoding of a causal generator", "", *_table(sections_of("generator", causal=True)["decode"], "decode")]
    return "\n".join(lines)


def _table(kind: type, section: str) -> list[str]:
    """A Markdown table of a dataclass's options."""
    from maskgil_jax.config.base import info_of

    rows = ["| option | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        info, name = info_of(field), ".".join(part for part in ("config", section, field.name) if part)
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        facts = "; ".join(part for part in (", ".join(f"`{choice}`" for choice in info.choices), info.range) if part)
        text = f"{info.help} ({facts})" if facts else info.help
        rows.append(f"| `{name}` | {default} | {text.replace('|', '&#124;')} |")
    return [*rows, ""]


def copied_page(name: str) -> str:
    """A file of the repository's root as a page: its links to docs/ become links inside the site."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\(([A-Z]+\.md)", lambda m: f"]({m[1].lower()}", text)


def on_files(files, config):
    """Adds the generated pages, and those of the packages to the navigation."""
    pages = {name.lower(): copied_page(name) for name in COPIES}
    pages |= {"reference/cli.md": command_help(), "reference/run_files.md": option_tables()}
    modules = packages()
    pages |= {f"reference/{package}.md": package_page(package, names) for package, names in modules.items()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.extend({package: f"reference/{package}.md"} for package in modules)
    return files


def on_page_markdown(markdown, page, **_):
    """Links to the copied files of the root stay links on the site."""
    return re.sub(r"\]\((?:\.\./)+(CHANGELOG|CONTRIBUTING|SECURITY)\.md", lambda m: _up(page, m[1]), markdown)


def _up(page, name: str) -> str:
    return "](" + "../" * page.file.src_uri.count("/") + f"{name.lower()}.md"
