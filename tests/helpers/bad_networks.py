"""Readable weight files of the wrong network or with contradicting configurations; what `convert` must say of each.

`build(folder, marker)` writes every case into a folder of its own. All start from one small generator with MaskGIL's
names.
"""

import json
import pathlib
from collections.abc import Callable

import numpy as np
from safetensors.numpy import save

from helpers.bad_files import Case
from helpers.file_assembler import args_of, mapping, number, tensors_of, text, torch_zip

WIDTH, CODES, CLASSES, HIDDEN, LAYERS = 64, 24, 5, 96, 2
W1, W2 = "layers.0.feed_forward.w1.weight", "layers.1.feed_forward.w2.weight"


def sound() -> dict[str, np.ndarray]:
    """A whole generator; heads are 64 wide, so there is one."""
    shapes = {"tok_emb.weight": (CODES + 1 + CLASSES + 1, WIDTH), "norm.weight": (WIDTH,), "output.weight": (CODES + 1, WIDTH)}
    for i in range(LAYERS):
        block = {
            "attention.wqkv.weight": (3 * WIDTH, WIDTH),
            "attention.wo.weight": (WIDTH, WIDTH),
            "feed_forward.w1.weight": (HIDDEN, WIDTH),
            "feed_forward.w2.weight": (WIDTH, HIDDEN),
            "feed_forward.w3.weight": (HIDDEN, WIDTH),
            "attention_norm.weight": (WIDTH,),
            "ffn_norm.weight": (WIDTH,),
        }
        shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def renamed(old: str, new: str) -> Callable[[dict], dict]:
    return lambda state: state | {new: state.pop(old)}


def changed(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], dict]:
    return lambda state: state | {name: np.ascontiguousarray(to(state[name]))}


def swapped(a: str, b: str) -> Callable[[dict], dict]:
    return lambda state: state | {a: state[b], b: state[a]}


def poisoned(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[1, 1:4] = np.nan
    return array


# name -> (what is done to the sound weights, what must be said)
STATES: dict[str, tuple[Callable[[dict], dict], str]] = {
    "swapped_tables": (swapped("tok_emb.weight", "output.weight"), "tok_emb.weight: its 25 rows cannot hold output.weight's"),
    "swapped_in_block": (swapped(W1, W2), "layers.0.feed_forward.w1.weight: has shape (64, 96), expected"),
    "missing": (lambda s: {n: a for n, a in s.items() if n != W2}, f"{W2}: missing; this family needs it, of shape (64, 96)"),
    "renamed": (renamed(W1, "layers.0.feed_forward.w9.weight"), f"{W1}: missing"),
    "unknown": (lambda s: s | {"layers.0.attention.bias": np.zeros(3, np.float32)}, "layers.0.attention.bias: unknown"),
    "a_layer_too_many": (
        lambda s: s | {"layers.7.ffn_norm.weight": s["norm.weight"]},
        "layers.2.attention.wqkv.weight: missing",
    ),
    "transposed": (changed("layers.1.attention.wqkv.weight", np.transpose), "wqkv.weight: has shape (64, 192), expected"),
    "one_row_less": (changed(W1, lambda a: a[:-1]), "has shape (96, 64), expected (95, 64)"),
    "whole_numbers": (changed(W2, lambda a: a.astype(np.int64)), f"{W2}: has type int64, expected floating point"),
    "truth_values": (changed("norm.weight", lambda a: a > 0), "norm.weight: has type bool, expected floating point"),
    "nan": (changed(W2, poisoned), f"{W2} holds 3 NaN and 0 infinite values"),
    "infinite": (changed("norm.weight", lambda a: a / 0), "norm.weight holds 0 NaN and 64 infinite values"),
    "empty_tensor": (
        changed("norm.weight", lambda a: a[:0]),
        "norm.weight: has shape (0,), expected 1 axes, none of them empty",
    ),
    "other_network": (lambda s: {f"lin0.model.{i}": a for i, a in enumerate(s.values())}, "not recognised by its 17 names"),
}
# name -> (configuration file next to correct weights, its contents, what must be said)
SIDECARS: dict[str, tuple[str, str, str]] = {
    "yaml_disagrees": ("model.yaml", "model: {params: {n_embed: 1024}}", "model.yaml says n_embed = 1024, the file has 24"),
    "yaml_other_depth": ("gpt.yml", "n_layer: 12\ndim: 64", "gpt.yml says n_layer = 12, the file has 2"),
    "yaml_object": (
        "model.yaml",
        "a: !!python/object/apply:os.system ['touch {marker}']",
        "model.yaml: is not valid YAML (line 1",
    ),
    "yaml_new": ("model.yaml", "!!python/object/new:os.system ['touch {marker}']", "model.yaml: is not valid YAML (line 1"),
    "yaml_cut": ("model.yaml", "model: {params: {n_embed: 24", "model.yaml: is not valid YAML (line 1"),
    "yaml_tabs": ("model.yaml", "model:\n\tparams: 3", "model.yaml: is not valid YAML (line 2"),
    "yaml_aliases": (
        "model.yaml",
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        "model.yaml: refers to other parts of itself more than 16 times",
    ),
    "yaml_deep": ("model.yaml", "[" * 60_000, "model.yaml: is nested more than 32 deep"),
    "yaml_large": ("model.yaml", "a: 1\n" * 100_000, "model.yaml: has more than 64 KB"),
    "json_disagrees": ("config.json", '{"vocab_size": 8192}', "config.json says vocab_size = 8192, the file has 24"),
    "json_page": ("config.json", "<!DOCTYPE html>", "config.json: it is not valid JSON"),
    "json_deep": ("config.json", "[" * 60_000, "config.json: it is n"),
}


def build(folder: pathlib.Path | None, marker: pathlib.Path) -> list[Case]:
    """Writes every case (folder None: only lists them); the hostile ones would create `marker` if they ran."""
    cases = []

    def case(name: str, says: str, file: str, write: Callable[[pathlib.Path], object]) -> None:
        place = pathlib.Path(f"{folder}/{name}")
        cases.append(Case(name, str(place / file), (says,)))
        if folder is not None:
            place.mkdir()
            write(place)

    for name, (change, says) in STATES.items():
        with np.errstate(divide="ignore"):
            state = change(sound())
        case(name, says, "w.safetensors", lambda p, s=state: (p / "w.safetensors").write_bytes(save(s)))
    good = save(sound())
    for name, (file, contents, says) in SIDECARS.items():

        def write(place: pathlib.Path, file=file, contents=contents) -> None:
            (place / "w.safetensors").write_bytes(good)
            (place / file).write_text(contents.replace("{marker}", str(marker)))

        case(name, says, "w.safetensors", write)
    weights, held = tensors_of(sound())
    args = args_of(vocab_size=number(16384), vq_model=text("VQ-16"))
    raw = torch_zip(mapping(model_state_dict=weights, args=args), held)
    says = "its options say vocab_size = 16384, its tensors make it 24"
    case("args_disagree", says, "w.pth", lambda place: (place / "w.pth").write_bytes(raw))
    index = json.dumps({"weight_map": dict.fromkeys(sound(), "m-1.safetensors") | {"norm.weight": "m-2.safetensors"}})

    def shards(place: pathlib.Path) -> None:
        (place / "m-1.safetensors").write_bytes(good)
        (place / "m-2.safetensors").write_bytes(save({"norm.weight": sound()["norm.weight"]}))
        (place / "model.safetensors.index.json").write_text(index)

    says = "norm.weight: in shard m-1.safetensors, but the index does not say so"
    case("tensor_in_two_shards", says, "model.safetensors.index.json", shards)
    return cases
