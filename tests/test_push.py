"""`maskgil push` and hf:// addresses with a local stand-in for the hub: round trips, and errors of one line."""

import json
import socket
import sys

import jax
import numpy as np
import pytest
import yaml
from helpers.fake_hub import TOKEN, running

from maskgil_jax import cli
from maskgil_jax.checkpoints.push import push
from maskgil_jax.checkpoints.weights import load_tokenizer, load_weights, save_weights
from maskgil_jax.config import ConfigError, LlamaConfig, VQConfig
from maskgil_jax.networks import abstract_params

VQ = VQConfig(channels=8, multipliers=(1, 2), res_blocks=1, latent_dim=8, codebook_size=32, codebook_dim=4, image_size=8)
GPT = LlamaConfig(codebook_size=32, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=32)
SOURCE = {"file": "vq.pt", "sha256": "f" * 64, "published": "somebody's tokenizer", "licence": "MIT", "assumed": ["grid = 4x4"]}


def drawn(cfg) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), abstract_params(cfg))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline whose generator is in shards."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_weights(folder / "tokenizer", VQ, drawn(VQ), metadata={"source": SOURCE})
    about = {"licence": "mit", "tokenizer_hash": load_weights(folder, "tokenizer").hash}
    save_weights(folder / "generator", GPT, drawn(GPT), metadata=about, shard_bytes=16_000)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain uploads over HTTP
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_pushed_pipeline_is_one_commit_and_loads_again(hub, folder, capsys):
    assert cli.main(["push", str(folder), "me/drawings", "--private", "--message", "First"]) == 0
    assert "load it as hf://me/drawings" in capsys.readouterr().out
    assert hub.repos["me/drawings"]["private"] and hub.messages == ["First"]
    sent = hub.files("me/drawings")
    local = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert len(local) > 6 and "generator/model.safetensors.index.json" in local
    assert {name: sent[name] for name in local} == local and sent.keys() - local.keys() == {"README.md", ".gitattributes"}
    for part in ("tokenizer", "generator"):
        assert load_weights("hf://me/drawings", part).hash == load_weights(folder, part).hash
    assert load_weights("hf://me/drawings@main", "tokenizer").cfg == VQ


def test_push_to_branch_deletes_stale_tensors(hub, folder, tmp_path):
    save_weights(tmp_path / "w", GPT, drawn(GPT), shard_bytes=16_000)
    push(tmp_path / "w", "me/gpt", licence="apache-2.0")
    assert sum(name.startswith("model-") for name in hub.files("me/gpt")) > 2
    save_weights(tmp_path / "w", GPT, jax.tree.map(lambda p: p + 1, drawn(GPT)))
    push(tmp_path / "w", "me/gpt", licence="apache-2.0", revision="second")
    assert hub.files("me/gpt", "second").keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert "hf://me/gpt@second" in hub.files("me/gpt", "second")["README.md"].decode()
    first, second = load_weights("hf://me/gpt"), load_weights("hf://me/gpt@second")
    assert second.hash == load_weights(tmp_path / "w").hash != first.hash
    (tmp_path / "w" / "README.md").write_text("my own words")
    push(tmp_path / "w", "me/gpt")
    assert hub.files("me/gpt")["README.md"] == b"my own words"


def test_model_card_lists_parts_files_and_sources(hub, folder):
    push(folder, "me/drawings")
    _, front, body = hub.files("me/drawings")["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "maskgil_jax",
        "license": "mit",
        "tags": ["jax", "flax", "image-generation", "llama", "vqgan"],
    }
    assert 'maskgil_jax.load("hf://me/drawings")' in body and "maskgil sample --weights hf://me/drawings" in body
    assert "| tokenizer | tokenizer: images to grids of codes and back | " in body and "codebook_size 32" in body
    import hashlib

    digest = hashlib.sha256((folder / "tokenizer" / "model.safetensors").read_bytes()).hexdigest()
    assert f"`{digest}`" in body and SOURCE["sha256"] in body and "Assumed: grid = 4x4." in body
    push(folder / "tokenizer", "me/vq")
    assert 'maskgil_jax.load_tokenizer("hf://me/vq")' in hub.files("me/vq")["README.md"].decode()
    assert load_tokenizer("hf://me/vq").cfg == VQ


def test_bad_push_raises_before_upload(hub, folder, tmp_path):
    save_weights(tmp_path / "plain", VQ, drawn(VQ))
    save_weights(tmp_path / "words", VQ, drawn(VQ), metadata={"source": SOURCE | {"licence": "research only: ask"}})
    save_weights(tmp_path / "cut", VQ, drawn(VQ))
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"x" * 40)
    (tmp_path / "empty").mkdir()
    for name, repo, options, match in (
        ("plain", "me/x", {}, "licence in its metadata: none; expected one identifier: give --license"),
        ("words", "me/x", {}, "licence in its metadata: research only: ask; expected one identifier: give --license"),
        ("plain", "me/x", {"licence": "MIT licence"}, "--license: 'MIT licence' is not an identifier"),
        ("plain", "x", {"licence": "mit"}, "x: expected hf://owner/repo"),
        ("plain", "me/x@v2", {"licence": "mit"}, "me/x@v2: write the branch as --revision v2"),
        ("cut", "me/x", {"licence": "mit"}, "model.safetensors: not a readable safetensors file"),
        ("empty", "me/x", {"licence": "mit"}, "empty: neither it nor a sub-folder is a weights folder"),
        ("nowhere", "me/x", {"licence": "mit"}, "no such weights folder"),
    ):
        with pytest.raises(ValueError, match=match):
            push(tmp_path / name, repo, **options)
    assert hub.asked == [] and hub.repos == {}


def failing(capsys, *argv) -> str:
    """The one line of an error that the command ends with."""
    capsys.readouterr()
    assert cli.main(list(map(str, argv))) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line and "%|" not in line]  # without the hub's progress bars
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    return error


@pytest.mark.slow
def test_hub_errors_are_one_line_with_code_2(hub, folder, capsys, monkeypatch):
    vq = folder / "tokenizer"
    push(vq, "me/vq")
    sample = ("sample", "--labels", "0", "--out", folder / "x.png", "--weights")
    assert "no repository me/none, or it is private (404)" in failing(capsys, *sample, "hf://me/none")
    assert "has no revision 'v9' of me/vq (404)" in failing(capsys, *sample, "hf://me/vq@v9")
    assert "hf://vq: expected hf://owner/repo" in failing(capsys, *sample, "hf://vq")
    for part, status, says in (
        ("/api/repos/create", 401, "refused (401): wrong or no token, or there is no such repository; log in with"),
        ("/api/repos/create", 403, "refused (403): the account may not write to me/vq; log in"),
        ("/preupload/", 403, "refused (403)"),
        ("/preupload/", 404, "no repository me/vq, or it is private (404)"),
        ("/commit/", 413, "the hub answered 413"),
        ("/commit/", 401, "refused (401)"),
    ):
        hub.fails = {part: (status, {})}
        assert says in failing(capsys, "push", vq, "me/vq"), (part, status)
    hub.fails = {}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "refused (401)" in failing(capsys, "push", vq, "me/vq")
    assert "refused (401)" in failing(capsys, *sample, "hf://me/vq")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no_token"))
    assert "refused (401)" in failing(capsys, "push", vq, "me/vq")
    assert hub.files("me/vq")["config.json"] == (vq / "config.json").read_bytes()


def test_unreachable_hub_uses_cache_or_raises(hub, folder, capsys, monkeypatch):
    push(folder / "tokenizer", "me/vq")
    kept = load_weights("hf://me/vq")
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)
    says = f"{closed} cannot be reached"
    assert says in failing(capsys, "push", folder / "tokenizer", "me/vq")
    assert says in failing(capsys, "export", "hf://me/other", folder / "x.safetensors", "--to", "llamagen-vq")
    assert load_weights("hf://me/vq").hash == kept.hash, "what was fetched before is still there"


def test_missing_hub_library_names_the_extra(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'maskgil-jax[hub]'" in failing(capsys, "push", folder / "tokenizer", "me/vq")
    with pytest.raises(ConfigError, match=r"hf://me/vq: the Hugging Face hub needs huggingface_hub"):
        load_weights("hf://me/vq")


def test_downloaded_index_with_parent_path_raises(hub, folder, tmp_path):
    push(folder / "generator", "me/gpt")
    files = dict(hub.files("me/gpt"))
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["norm/scale"] = "../../../secret.safetensors"
    hub.commit("me/gpt", "main", files | {"model.safetensors.index.json": json.dumps(index).encode(), "run.py": b"1/0"})
    with pytest.raises(ValueError, match=r"'\.\./\.\./\.\./secret\.safetensors' is not the name of a shard"):
        load_weights("hf://me/gpt")
    assert not list((tmp_path / "cache").rglob("run.py"))
