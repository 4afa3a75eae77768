"""A Hugging Face hub on this machine: repositories in memory behind the HTTP calls that huggingface_hub makes."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_right"


class FakeHub(ThreadingHTTPServer):
    """`repos`: name -> {"private": bool, "branches": {name: commit}, "commits": {commit: {path: bytes}}}.

    `fails`: part of "METHOD /path" -> (status, headers) answered instead; `asked`: every "METHOD /path" in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.fails, self.asked, self.large, self.messages = {}, {}, [], {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        about = self.repos[repo]
        return about["commits"][about["branches"].get(revision, revision)]

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        text = repr(sorted((name, hashlib.sha1(raw).hexdigest()) for name, raw in files.items()))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.repos[repo]["commits"][oid] = files
        self.repos[repo]["branches"][branch] = oid
        return oid


@contextlib.contextmanager
def running():
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        self.server.asked.append(asked)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for part, (status, headers) in self.server.fails.items():
            if part in asked:
                return self.answer(status, {"error": "refused"}, **headers)
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        for pattern, route in ROUTES:
            if match := re.fullmatch(pattern, asked):
                repo = match.groupdict().get("repo")
                if repo is not None:
                    about = self.server.repos.get(repo)
                    if about is None or (about["private"] and not self.headers.get("Authorization")):
                        return self.refuse(404, "RepoNotFound")
                    revision = match.groupdict().get("revision") or "main"
                    if revision not in about["branches"] | about["commits"] and not match.groupdict().get("new"):
                        return self.refuse(404, "RevisionNotFound")
                if self.command == "POST" and not self.headers.get("Authorization") and "validate" not in path:
                    return self.answer(401, X_Error_Message="Authentication needed")
                return route(self, **match.groupdict())
        return self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # ------------------------------------------------------------------------------------------------ the calls
    def create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.server.url}/{repo}"}
        if repo in self.server.repos:
            return self.answer(409, url)
        self.server.repos[repo] = {"private": asked.get("visibility") == "private", "branches": {}, "commits": {}}
        self.server.commit(repo, "main", {".gitattributes": b""})
        return self.answer(200, url)

    def branch(self, repo: str, new: str) -> None:
        branches = self.server.repos[repo]["branches"]
        status = 409 if new in branches else 200
        branches.setdefault(new, branches["main"])
        self.answer(status, {})

    def info(self, repo: str, revision: str | None = None) -> None:
        about = self.server.repos[repo]
        sha = about["branches"].get(revision or "main", revision)
        siblings = [{"rfilename": name} for name in about["commits"][sha]]
        self.answer(200, {"id": repo, "sha": sha, "siblings": siblings, "private": about["private"], "tags": []})

    def tree(self, repo: str, revision: str) -> None:
        listed = []
        for name, raw in self.server.files(repo, revision).items():
            entry = {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 130}
            listed.append(entry)
        self.answer(200, listed)

    def validate(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
        answers = [{"path": f["path"], "uploadMode": mode, "shouldIgnore": False} for f, mode in zip(files, modes)]
        self.answer(200, {"files": answers})

    def batch(self, repo: str) -> None:
        objects = [
            {**about, "actions": {"upload": {"href": f"{self.server.url}/large/{about['oid']}"}}}
            for about in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def commit(self, repo: str, revision: str) -> None:
        files = dict(self.server.files(repo, revision))
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.server.commit(repo, revision, files)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        raw = self.server.files(repo, revision).get(name)
        if raw is None:
            return self.refuse(404, "EntryNotFound")
        oid = self.server.repos[repo]["branches"].get(revision, revision)
        tag = hashlib.sha256(raw).hexdigest() if name.endswith(".safetensors") else hashlib.sha1(raw).hexdigest()
        return self.answer(200, raw, ETag=f'"{tag}"', X_Repo_Commit=oid)

    def store(self, oid: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.answer(200 if right else 400)


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (rf"POST /api/models/{REPO}/branch/(?P<new>.+)", Handler.branch),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/models/{REPO}/tree/(?P<revision>[^/]+)/?", Handler.tree),
    (rf"GET /api/models/{REPO}(/revision/(?P<revision>.+))?", Handler.info),
    (rf"POST /api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"POST /api/models/{REPO}/commit/(?P<revision>.+)", Handler.commit),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /large/(?P<oid>[0-9a-f]+)", Handler.store),
    (rf"(?:GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.resolve),
]
