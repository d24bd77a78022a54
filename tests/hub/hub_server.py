"""A small model hub on a loopback port: the protocols of Hugging Face and ModelScope, and faults.

It serves a real checkpoint: the embedded weights, cut into two shards as published ones are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from safetensors.torch import load_file, save_file

WEIGHTS = Path(__file__).parents[2] / "src/visiongate/mini/weights"
MODEL = "acme/tiny-vl"
NOISE = {"README.md": b"# tiny", "pytorch_model.bin": b"x" * 9000, "model.gguf": b"y" * 9000}


@dataclass
class Faults:
    """What goes wrong: every field is off at first.

    Attributes:
        cut_after: bytes of a body after which the connection is cut, for so many times.
        bytes_per_second: how fast bodies are sent; 0 is as fast as it goes.
        wrong: file names whose first byte is turned, for so many times.
        status: the answer to everything.
        error_code: Hugging Face's X-Error-Code beside `status`.
        ignores_ranges: bodies always begin at the beginning.
        busy_files: so many requests for a file are answered 503.
    """

    cut_after: int = 0
    num_cuts: int = 0
    bytes_per_second: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    status: int = 0
    error_code: str = ""
    ignores_ranges: bool = False
    busy_files: int = 0


@dataclass
class Hub:
    """A running hub: its address, what it was asked, what it sent."""

    url: str
    files: dict[str, bytes]
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(self.files.values())).hexdigest()

    def hashes(self) -> dict[str, str]:
        """sha256 of every file that a checkpoint needs."""
        return {k: hashlib.sha256(v).hexdigest() for k, v in self.files.items() if k not in NOISE}


def published(folder: Path, *, is_whole: bool) -> dict[str, bytes]:
    """The embedded checkpoint in two shards with an index, and files that nobody needs.

    Without `is_whole` only tensors under 400 kB are in it: enough for all that concerns bytes.
    """
    tensors = load_file(WEIGHTS / "model.safetensors")
    names = sorted(name for name in tensors if is_whole or tensors[name].nbytes < 400_000)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, half in zip(shards, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / shard, {"format": "pt"})
    weight_map = {n: shard for shard, half in zip(shards, halves, strict=True) for n in half}
    files = {shard: (folder / shard).read_bytes() for shard in shards}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    for path in WEIGHTS.iterdir():
        if path.suffix in {".json", ".jinja"}:
            files[path.name] = path.read_bytes()
    return files | NOISE


@contextlib.contextmanager
def run_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", files)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of callers that were killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append(self.path)
        hub.tokens.append(self.headers.get("Authorization", ""))
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        if hub.faults.status:
            self._json({"error": "no"}, hub.faults.status, {"X-Error-Code": hub.faults.error_code})
        elif hub.faults.busy_files and path.startswith("/cdn/"):
            hub.faults.busy_files -= 1
            self._json({}, 503)
        elif path.startswith("/api/models/"):
            self._hugging_face_list(hub, path)
        elif found := re.fullmatch(rf"/{MODEL}/resolve/([^/]+)/(.+)", path):
            self._hugging_face_file(hub, *found.groups())
        elif path.startswith("/cdn/"):
            self._body(hub, path.removeprefix("/cdn/"))
        elif path == f"/api/v1/models/{MODEL}/repo/files":
            self._modelscope_list(hub)
        elif path == f"/api/v1/models/{MODEL}/repo":
            self._body(hub, query["FilePath"])
        elif path.startswith("/api/v1/models/"):
            self._json({"Code": 10010205001, "Message": "not found"}, 404)
        else:
            self._json({"error": "no such page"}, 404)

    def _hugging_face_list(self, hub: Hub, path: str) -> None:
        found = re.fullmatch(r"/api/models/(.+)/revision/(.+)", path)
        if not found or found[1] != MODEL:
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return
        if found[2] not in {"main", "v1", hub.commit}:
            self._json({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name, data in hub.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if name.endswith((".safetensors", ".bin", ".gguf")):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append(entry)
        self._json({"id": MODEL, "sha": hub.commit, "siblings": siblings})

    def _hugging_face_file(self, hub: Hub, commit: str, name: str) -> None:
        if commit != hub.commit or name not in hub.files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        elif name.endswith(".safetensors"):  # large files lie on another host
            self.send_response(302)
            self.send_header("Location", f"/cdn/{name}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Size", str(len(hub.files[name])))
            self.send_header("X-Linked-Etag", hashlib.sha256(hub.files[name]).hexdigest())
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._body(hub, name, {"X-Repo-Commit": commit})

    def _modelscope_list(self, hub: Hub) -> None:
        files = [
            {"Name": name, "Path": name, "Type": "blob", "Size": len(data)}
            | {"Sha256": hashlib.sha256(data).hexdigest(), "Revision": "aa"}
            for name, data in hub.files.items()
        ]
        files.append({"Name": "assets", "Path": "assets", "Type": "tree", "Size": 0})
        self._json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def _body(self, hub: Hub, name: str, headers: dict[str, str] | None = None) -> None:
        """A file from the byte that was asked for, as slowly and as far as the faults say."""
        faults = hub.faults
        data = hub.files[name]
        if faults.wrong.get(name, 0) > 0:
            faults.wrong[name] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not faults.ignores_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        end = len(data)
        if faults.num_cuts > 0 and len(data) - start > faults.cut_after:
            faults.num_cuts -= 1
            end = start + faults.cut_after
        rate = faults.bytes_per_second
        step = max(1, rate // 50) if rate else 1 << 20
        for begin in range(start, end, step):
            piece = data[begin : min(begin + step, end)]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            hub.sent_bytes += len(piece)
            if rate:
                time.sleep(len(piece) / rate)
        if end < len(data):
            self.close_connection = True
            self.connection.close()

    def _json(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)
