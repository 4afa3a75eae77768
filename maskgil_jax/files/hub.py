"""Downloads and uploads weights folders from and to the Hugging Face hub. Needs the extra [hub].

Errors of the hub are raised as a ConfigError of one line. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME` are those of
huggingface_hub.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from maskgil_jax.config import ConfigError, require

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PATTERNS = ["*.json", "*.safetensors", "*merges.txt"]  # at any depth; nothing else is fetched
_HUB = "https://huggingface.co"


def is_tensor_file(name: str) -> bool:
    """Whether a file of this name in a weights folder holds tensors or their index."""
    return name in (WHOLE, INDEX) or SHARD_NAME.fullmatch(name) is not None


def split_address(address: str) -> tuple[str, str | None]:
    """ "hf://owner/repo@revision" -> ("owner/repo", "revision"); without "@", the revision is None."""
    repo, _, revision = address.removeprefix("hf://").partition("@")
    owner, _, name = repo.partition("/")
    require(bool(owner and name) and "/" not in name, f"{address}: expected hf://owner/repo or hf://owner/repo@revision")
    return repo, revision or None


def list_files(address: str) -> list[str] | None:
    """The names of the files of "hf://owner/repo[@revision]".

    None if the hub cannot be asked, and its cache must do.
    """
    repo, revision = split_address(address)
    hub = _library(address)
    try:
        with _as_config_error(address, repo, revision):
            about = hub.HfApi(endpoint=_endpoint()).model_info(repo, revision=revision)
            return [file.rfilename for file in about.siblings or []]
    except ConfigError:
        return None  # `download` says what is wrong, unless the cache has the files


def download(address: str, ignore: Sequence[str] = (), cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Fetches the weights files of "hf://owner/repo[@revision]" into the hub's cache: only JSON, safetensors and the
    merges of CLIP's tokenizer, without the names that the patterns `ignore` match.

    cache_dir: instead of the hub's cache, a folder of the same layout.
    Files in the cache are used if the hub cannot be reached. Raises a ConfigError of one line.
    """
    repo, revision = split_address(address)
    hub = _library(address)
    with _as_config_error(address, repo, revision):
        patterns = dict(allow_patterns=_PATTERNS, ignore_patterns=list(ignore) or None)
        fetched = hub.snapshot_download(repo, revision=revision, endpoint=_endpoint(), cache_dir=cache_dir, **patterns)
        return pathlib.Path(fetched)


def upload(
    repo: str,
    files: Mapping[str, pathlib.Path | bytes],
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload weights",
) -> str:
    """Uploads {path in the repository: local file or contents} as one commit and returns the commit's address.

    The repository and the branch `revision` (default: main) are created if they do not exist. Tensor files of an
    earlier upload that are not among `files` are deleted in the same commit, so that loading never mixes two uploads.
    private: of a repository that is created. Raises a ConfigError of one line.
    """
    repo, _ = split_address(repo)
    hub = _library(repo)
    api = hub.HfApi(endpoint=_endpoint())
    with _as_config_error(repo, repo, revision, write=True):
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: the account's default
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        existing = api.list_repo_files(repo, revision=revision)
        stale = [name for name in existing if is_tensor_file(name.rpartition("/")[2]) and name not in files]
        operations = [hub.CommitOperationDelete(name) for name in stale]
        operations += [hub.CommitOperationAdd(name, source) for name, source in files.items()]
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


def _endpoint() -> str | None:
    """$HF_ENDPOINT at the time of the call; huggingface_hub reads it when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _library(address: str):
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            f"{address}: the Hugging Face hub needs huggingface_hub; pip install 'maskgil-jax[hub]', or use a local folder"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _as_config_error(address: str, repo: str, revision: str | None, write: bool = False) -> Iterator[None]:
    """Turns errors of the hub's library into a `ConfigError` of one line."""
    from httpx2 import HTTPError, TransportError

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # The library chains errors: the innermost one with an answer of the hub has the reason.
        chain: list[BaseException] = [error]
        while inner := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(inner)
        answer = next((found for e in chain if (found := getattr(e, "response", None)) is not None), None)
        lost = next((e for e in chain if isinstance(e, TransportError | ConnectionError)), None)
        if answer is not None:
            raise ConfigError(f"{address}: {_refusal(answer, repo, revision, write)}") from error
        if lost is not None:
            where = _endpoint() or _HUB
            raise ConfigError(
                f"{address}: {where} cannot be reached ({_line(lost)}); check the network and try again"
            ) from error
        raise ConfigError(f"{address}: could not be {'uploaded' if write else 'fetched'} ({_line(error)})") from error


def _refusal(answer, repo: str, revision: str | None, write: bool) -> str:
    log_in = "log in with `hf auth login`, or set HF_TOKEN to a token that may " + ("write" if write else "read it")
    code = answer.headers.get("X-Error-Code")
    if code == "RevisionNotFound":
        return f"the hub has no revision {revision or 'main'!r} of {repo} (404)"
    if answer.status_code == 401:
        return f"the hub refused (401): wrong or no token, or there is no such repository; {log_in}"
    if answer.status_code == 403:
        return f"the hub refused (403): the account may not {'write to' if write else 'read'} {repo}; {log_in}"
    if answer.status_code == 404:
        return f"the hub has no repository {repo}, or it is private (404); check the name, or {log_in}"
    reason = answer.headers.get("X-Error-Message") or answer.reason_phrase
    return f"the hub answered {answer.status_code} ({reason}); try again later"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split("\n\n")[0].split())
    return text or type(error).__name__
