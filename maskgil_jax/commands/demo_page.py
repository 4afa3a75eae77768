"""The HTML page of `maskgil demo`: pictures, the commands that made them, and a table of figures in one file."""

from __future__ import annotations

import base64
import dataclasses
import html
import pathlib
from collections.abc import Sequence

from maskgil_jax.files.atomic import writing

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 0 0 2.5rem; }
figure img { max-width: 100%; image-rendering: pixelated; background: white; border-radius: 4px; }
pre { white-space: pre-wrap; padding: .6rem; border-radius: 4px; background: color-mix(in srgb, currentColor 8%, transparent); }
table { border-collapse: collapse; margin-bottom: 2.5rem; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A picture of the page. command: draws the same picture; empty if no command does."""

    title: str
    picture: pathlib.Path
    caption: str
    command: str = ""
    scale: int = 1  # screen pixels of a picture's pixel


def write_page(
    file: pathlib.Path, title: str, introduction: str, sections: Sequence[Section], table: Sequence[Sequence[str]] = ()
) -> None:
    """Writes the page to `file`.

    Pictures are embedded, so the file can be moved. table: rows, the first is the head.
    """
    text = html.escape
    parts = [f"<h1>{text(title)}</h1>", f"<p>{text(introduction)}</p>", *map(_figure, sections)]
    if table:
        head, *rows = table
        cells = ["<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>"]
        cells += ["<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        parts.append("<h2>Figures</h2><table>" + "\n".join(cells) + "</table>")
    page = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    with writing(file) as part:
        part.write_text(page, encoding="utf-8")


def _figure(section: Section) -> str:
    from PIL import Image

    with Image.open(section.picture) as image:
        width, height = (side * section.scale for side in image.size)
    data = base64.b64encode(section.picture.read_bytes()).decode()
    command = f"<pre>{html.escape(section.command)}</pre>" if section.command else ""
    return (
        f"<h2>{html.escape(section.title)}</h2><figure>"
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(section.caption, quote=True)}"'
        f' width="{width}" height="{height}" style="height:auto">'
        f"<figcaption>{html.escape(section.caption)}</figcaption>{command}</figure>"
    )
