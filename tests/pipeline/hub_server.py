"""A fake Hugging Face hub with the part of the API that reading a dataset needs; no test uses the real one."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FakeHub:
    """Datasets by name: commits, oldest first, each with its files.

    Attributes:
        commits: by dataset, the files of each commit by its hash.
        branches: by dataset and branch, the commit.
        private: datasets that need `token`.
        gated: datasets that may not be read.
        requests: all requested paths.
        failing: number of the next requests for a file's content that fail with 503.
    """

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_test"
    requests: list[str] = field(default_factory=list)
    failing: int = 0
    url: str = ""

    def push(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch of a dataset; returns its hash."""
        commit = f"{len(self.commits.setdefault(name, {})) + 1:040x}"
        self.commits[name][commit] = files
        self.branches[name, branch] = commit
        return commit

    def answer(self, target: str, authorization: str, byte_range: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the response."""
        path = unquote(urlsplit(target).path)
        match = re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/(.*))?", path)
        if match is None:
            return 404, {}, b""
        name, what, rest = match[1], match[2], match[3] or ""
        if name not in self.commits or (name in self.private and authorization != f"Bearer {self.token}"):
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        revision, _, inner = (
            ("main", "", "") if what is None else rest.partition("/") if what != "revision" else (rest, "", "")
        )
        commit = self.branches.get((name, revision), revision)
        if commit not in self.commits[name]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.commits[name][commit]
        if what == "tree":
            return self._tree(files, inner, recursive="recursive=true" in target.lower())
        if what == "resolve":
            return self._content(files, inner, byte_range)
        return (
            200,
            {},
            json.dumps({"id": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}).encode(),
        )

    def _tree(self, files: dict[str, bytes], folder: str, *, recursive: bool) -> tuple[int, dict[str, str], bytes]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                if recursive or depth == 1:
                    each = prefix + "/".join(parts[:depth])
                    entries[each] = {"type": "directory", "path": each, "size": 0, "oid": "0" * 40}
            if recursive or len(parts) == 1:
                entries[path] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        if folder and not entries:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {}, json.dumps(list(entries.values())).encode()

    def _content(self, files: dict[str, bytes], path: str, byte_range: str) -> tuple[int, dict[str, str], bytes]:
        if path not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if self.failing:
            self.failing -= 1
            return 503, {}, b""
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range):
            start, stop = int(match[1]), int(match[2] or len(files[path]) - 1) + 1
            return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(files[path])}"}, files[path][start:stop]
        return 200, {}, files[path]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Serve a hub at `url` on this machine."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(self.path)
            status, headers, body = hub.answer(
                self.path, self.headers.get("Authorization", ""), self.headers.get("Range", "")
            )
            self.send_response(status)
            for name, value in {
                **headers,
                "Content-Length": str(len(body)),
                "Content-Type": "application/json",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
