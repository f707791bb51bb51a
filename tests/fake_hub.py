"""A model hub on loopback that speaks as the real one does, and can fail in named ways. Standard library only.

It is two servers, as the real one: the hub (listing, small files) and the storage that it redirects to for large files. What it
answers follows huggingface_hub's client: /api/models/NAME/revision/R with ?blobs=true, /api/models/NAME/tree/R, HEAD and GET of
/NAME/resolve/R/PATH with X-Repo-Commit, ETag, X-Linked-Etag and X-Linked-Size, Range requests, X-Error-Code.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pth", ".gguf", ".onnx")
TOKEN = "hf_fakeTokenThatMayRead"
OTHER_TOKEN = "hf_fakeTokenOfSomeoneElse"  # valid, without access to anything gated or private
_BLOCK = 2**18


@dataclass
class Repo:
    """One repository. `sizes` lists sizes that are not those of the content, as a repository too large for this disk has."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        state = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            state.update(path.encode() + hashlib.sha256(content).digest())
        return state.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived; `storage` tells the second server from the hub."""

    method: str
    path: str
    range: str
    authorization: str
    storage: bool


class FakeHub:
    """`with FakeHub({"org/name": Repo(files=…)}) as hub:` serves until the block ends. Faults are by path, and may change while it runs.

    cut: the connection breaks when that byte is reached, as often as `times` says (default: always) · gone: files that get a 503, and with
    `gone_after_cut` each that was cut · stall: nothing comes after that byte until `go_on` is set · damage: so many answers end in a
    wrong byte · shorter: the file is a byte shorter than listed · whole_only: Range is ignored · refuse: every request gets this
    status · web_page: every answer is HTML.
    """

    def __init__(self, repos: Mapping[str, Repo]) -> None:
        self.repos = dict(repos)
        self.cut: dict[str, int] = {}
        self.times: dict[str, int] = {}
        self.stall: dict[str, int] = {}
        self.damage: dict[str, int] = {}
        self.shorter: set[str] = set()
        self.gone: set[str] = set()
        self.whole_only = self.web_page = self.gone_after_cut = False
        self.refuse = 0
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.requests: list[Request] = []
        self._servers = [_Server(self, storage=False), _Server(self, storage=True)]

    @property
    def url(self) -> str:
        return self._servers[0].url

    @property
    def storage_url(self) -> str:
        return self._servers[1].url

    def asked(self, path: str) -> list[Request]:
        """The GET requests for the content of `path` that reached whoever holds it."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{path}") and r.storage == path.endswith(LARGE)]

    def heal(self) -> None:
        """No faults from here on, and no requests remembered."""
        for faults in (self.cut, self.times, self.stall, self.damage, self.shorter, self.gone, self.requests):
            faults.clear()
        self.whole_only = self.web_page = self.gone_after_cut = False
        self.refuse = 0
        self.go_on.set()

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: FakeHub, *, storage: bool) -> None:
        self.hub, self.storage = hub, storage
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that breaks off is what many tests are about


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(Request(method=self.command, path=path, range=self.headers.get("Range", ""), storage=self.server.storage,
                                    authorization=self.headers.get("Authorization", "")))
        if hub.refuse:
            self._refuse(hub.refuse, "", "The fake refuses everything")
        elif hub.web_page:
            self._send(b"<html>Log in to this network</html>", kind="text/html")
        elif self.server.storage:
            _, name, file = re.split(r"^/((?:[^/]+/)?[^/]+)/-/", path)
            self._content(file, hub.repos[name].files[file])
        else:
            self._hub(path)

    def _hub(self, path: str) -> None:
        match = (re.fullmatch(r"/api/models/(?P<name>.+?)(/(?P<verb>revision|tree)/(?P<revision>[^/]+))?", path)
                 or re.fullmatch(r"/(?P<name>.+?)/(?P<verb>resolve)/(?P<revision>[^/]+)/(?P<file>.+)", path))
        name = match["name"] if match else ""
        repo, token = self.server.hub.repos.get(name), self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, OTHER_TOKEN):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if not match or repo is None or (repo.private and token != TOKEN):
            return self._refuse(404, "RepoNotFound", "Repository not found") if token else self._refuse(401, "", "Invalid username or password.")
        if (match["revision"] or "main") not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        if match["verb"] == "tree":
            return self._json([_tree_entry(repo, file) for file in repo.files])
        if match["verb"] != "resolve":
            return self._json({"id": name, "sha": repo.commit, "gated": "manual" if repo.gated else False, "private": repo.private,
                               "siblings": [_sibling(repo, file) for file in repo.files]})
        if repo.gated and token != TOKEN:
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        if match["file"] not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._resolve(name, repo, match["file"])

    def _resolve(self, name: str, repo: Repo, file: str) -> None:
        content = repo.files[file]
        if not file.endswith(LARGE):
            return self._content(file, content, {"ETag": f'"{_git_sha1(content)}"', "X-Repo-Commit": repo.commit})
        return self._send(b"", status=302, headers={
            "Location": f"{self.server.hub.storage_url}/{name}/-/{file}?signature=not-for-logs", "X-Repo-Commit": repo.commit,
            "X-Linked-Size": str(repo.sizes.get(file, len(content))), "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _content(self, file: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        hub, start = self.server.hub, 0
        if file in hub.gone:
            return self._refuse(503, "", "Storage is not there")
        if file in hub.shorter:
            content = content[:-1]
        if hub.damage.get(file, 0) > 0 and self.command == "GET":
            hub.damage[file] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not hub.whole_only:
            start = int(asked[1])
            if start >= len(content):
                return self._refuse(416, "", "Requested range not satisfiable")
        self.send_response(206 if start else 200)
        for key, value in {**(headers or {}), "Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        return self._write(file, content, start) if self.command == "GET" else None

    def _write(self, file: str, content: bytes, start: int) -> None:
        hub, end = self.server.hub, len(content)
        if hub.times.get(file, 1) != 0:
            end = hub.cut.get(file, end)
        if file in hub.stall:
            self._blocks(content[start:hub.stall[file]])
            hub.stalled.set()
            hub.go_on.wait()
            start = hub.stall[file]
        self._blocks(content[start:end])
        if end < len(content):
            hub.times[file] = hub.times.get(file, 0) - 1
            if hub.gone_after_cut:
                hub.gone.add(file)
            self.close_connection = True

    def _blocks(self, content: bytes) -> None:
        for at in range(0, len(content), _BLOCK):
            self.wfile.write(content[at:at + _BLOCK])

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), kind="application/json")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(json.dumps({"error": message}).encode(), status=status, kind="application/json",
                   headers={"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})

    def _send(self, body: bytes, *, status: int = 200, kind: str = "text/plain", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def model(*, shard_bytes: int = 4096) -> dict[str, bytes]:
    """A repository as models have it: two shards of random-looking bytes, what stands beside them, and what vLLM does not need."""
    shards = {f"model-0000{n}-of-00002.safetensors": safetensors({f"layer.{n}": shard_bytes}, seed=n) for n in (1, 2)}
    index = {"metadata": {"total_size": 2 * shard_bytes}, "weight_map": {f"layer.{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
    return {".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"# A model\n", "LICENSE": b"Free.\n",
            "config.json": b'{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}\n', "tokenizer.json": b'{"version": "1.0"}\n',
            "tokenizer_config.json": b"{}\n", "model.safetensors.index.json": json.dumps(index).encode(), **shards,
            "pytorch_model.bin": b"the same weights again", "original/consolidated.00.pth": b"and again", "onnx/model.onnx": b"and again"}


def safetensors(tensors: Mapping[str, int], *, seed: int) -> bytes:
    """A safetensors file with tensors of so many bytes each."""
    header, at = {}, 0
    for name, count in tensors.items():
        header[name] = {"dtype": "U8", "shape": [count], "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    unit = b"".join(hashlib.sha256(b"%d/%d" % (seed, n)).digest() for n in range(128))
    return len(text).to_bytes(8, "little") + text + (unit * (at // len(unit) + 1))[:at]


def _sibling(repo: Repo, file: str) -> dict[str, object]:
    content = repo.files[file]
    size = repo.sizes.get(file, len(content))
    lfs = {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}} if file.endswith(LARGE) else {}
    return {"rfilename": file, "size": size, "blobId": _git_sha1(content), **lfs}


def _tree_entry(repo: Repo, file: str) -> dict[str, object]:
    content = repo.files[file]
    lfs = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}} if file.endswith(LARGE) else {}
    return {"type": "file", "path": file, "size": len(content), "oid": _git_sha1(content), **lfs}


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
