"""`prepared`: whatever is published -> a pipeline folder that `load` reads, converted once into a cache folder.

Three things are recognised: a pipeline folder of diffusers, here or on the hub; a weight file of a generator with its
tokenizer's file beside it; and everything else, which is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from maskgil_jax import __version__
from maskgil_jax.config import ConfigError
from maskgil_jax.files.atomic import write_json
from maskgil_jax.files.hub import download, list_files, split_address

from .diffusers_folder import MODEL_INDEX, ConvertedPipeline, convert_folder, find_parts, is_pipeline_folder
from .families import FAMILIES
from .main import family_of_file, planned
from .weight_pairs import convert_pair, is_generator_file, tokenizer_beside

MANIFEST = "conversion.json"  # written last: a cache folder without it is made again
_log = logging.getLogger(__name__)


def cache_folder(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Where conversions are kept: `cache_dir`, $MASKGIL_CACHE_DIR or ~/.cache/maskgil_jax, and in it `published`."""
    chosen = cache_dir or os.environ.get("MASKGIL_CACHE_DIR") or pathlib.Path.home() / ".cache" / "maskgil_jax"
    return pathlib.Path(chosen) / "published"


def prepared(path: str | os.PathLike, cache_dir: str | os.PathLike | None = None, *, variant: str | None = None) -> Any:
    """The pipeline folder to load for `path`: a conversion in the cache,
    or `path` itself if there is nothing to convert.

    variant: of the files of a diffusers folder, such as "fp16"; None takes the plain ones, or fp16 where only these
    exist. A conversion is made again if a source file changed (size or time), or if a file of it is missing or of
    another size. Raises a `ValueError` of one line for a folder or file that is recognised and cannot be converted.
    """
    text = os.fspath(path)
    if text.startswith("hf://"):
        folder = _fetched(text, variant, cache_dir)
        if folder is None:
            return path
        repo, asked = split_address(text)
        origin = {"repository": repo, "revision": folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else asked}
        return _cached(folder, cache_dir, repo.replace("/", "--"), variant, origin)
    if is_pipeline_folder(text):
        return _cached(pathlib.Path(text), cache_dir, pathlib.Path(text).absolute().name, variant, {})
    if is_generator_file(text):
        tokenizer = tokenizer_beside(text, planned(text).cfg.codebook_size)
        files = [pathlib.Path(text), tokenizer]
        return _once(files, cache_dir, pathlib.Path(text).stem, {}, lambda out: convert_pair(text, out, tokenizer=tokenizer))
    if os.path.isfile(text) and (family := family_of_file(text)) in FAMILIES:
        raise ConfigError(f"{text}: holds {FAMILIES[str(family)].title}, expected a generator; give the generator's file")
    return path


def _fetched(address: str, variant: str | None, cache_dir: Any = None) -> pathlib.Path | None:
    """The local copy of a repository of diffusers; None for any other one."""
    names = list_files(address)
    if names is not None and MODEL_INDEX not in names:
        return None
    kept = None if cache_dir is None else pathlib.Path(cache_dir, "hub")
    # Without the hub, the copy in its cache must do: which of its weight files are missing, the conversion says.
    folder = download(address, ["*.safetensors"] if names is None else _unwanted(names, variant), kept)
    return folder if is_pipeline_folder(folder) else None


def _unwanted(names: Iterable[str], variant: str | None) -> list[str]:
    """Files of weights that are not needed: those of other variants, where there are several."""
    weights = {name for name in names if name.endswith(".safetensors")}
    twice = [name for name in weights if name.replace(".safetensors", f".{variant or 'fp16'}.safetensors") in weights]
    if variant:
        return sorted(twice)
    return sorted(name.replace(".safetensors", ".fp16.safetensors") for name in twice)


def _cached(folder: pathlib.Path, cache_dir: Any, name: str, variant: str | None, origin: Mapping[str, Any]) -> pathlib.Path:
    files = find_parts(folder, variant).files()
    stated = {"variant": variant, **origin}
    return _once(files, cache_dir, name, stated, lambda out: convert_folder(folder, out, variant=variant, origin=origin))


def _once(
    files: list[pathlib.Path],
    cache_dir: Any,
    name: str,
    stated: Mapping[str, Any],
    make: Callable[[pathlib.Path], ConvertedPipeline],
) -> pathlib.Path:
    """The cache folder of these source files, made by `make` unless it is there, whole,
    and made from the same files."""
    sources = {str(file.resolve()): _stamp(file) for file in files}
    key = hashlib.sha256(json.dumps([__version__, sources, dict(stated)], sort_keys=True).encode()).hexdigest()[:12]
    out = cache_folder(cache_dir) / f"{name}-{key}"
    if _is_whole(out, sources):
        return out
    if out.exists():
        shutil.rmtree(out)
    _log.warning("%s: converting to %s (once)", files[0].parent if len(files) > 2 else files[0], out)
    done = make(out)
    written = {str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    write_json(out / MANIFEST, {"version": __version__, "sources": sources, "written": written, **stated})
    revision = f", revision {stated['revision']}" if stated.get("revision") else ""
    _log.warning("%s: licence of the weights: %s%s", name, done.licences, revision)
    return out


def _stamp(file: pathlib.Path) -> list[int]:
    about = file.stat()
    return [about.st_size, about.st_mtime_ns]


def _is_whole(out: pathlib.Path, sources: Mapping[str, list[int]]) -> bool:
    """Whether a conversion has ended, from these sources, and its files have their sizes."""
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        written = manifest["written"]
        return manifest["sources"] == dict(sources) and all((out / n).stat().st_size == size for n, size in written.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
