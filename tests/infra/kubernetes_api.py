"""A small Kubernetes API server of the tests: what kubectl asks of it, with objects that a test changes as it likes."""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

KUBERAY = "ray.io/v1"
# Group and version, then resources with their kinds.
_KINDS = {
    "v1": {
        "namespaces": "Namespace", "pods": "Pod", "secrets": "Secret", "serviceaccounts": "ServiceAccount",
        "persistentvolumeclaims": "PersistentVolumeClaim", "configmaps": "ConfigMap",
    },
    "batch/v1": {"jobs": "Job"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    KUBERAY: {"rayjobs": "RayJob"},
}  # fmt: skip


class Api:
    """The objects of a cluster, by resource and name; all are in one namespace, `phf`."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Any] = {}
        self.versions = dict(_KINDS)
        self.forbidden: set[str] = set()
        self.logs: dict[str, str] = {}
        self.sent: list[str] = []
        self.executed: list[tuple[str, list[str]]] = []
        self.server = ""

    def add(self, version: str, resource: str, name: str, **fields: Any) -> Any:
        """Put an object into the cluster."""
        metadata = {"name": name, "namespace": "phf", **fields.pop("metadata", {})}
        thing = {"apiVersion": version, "kind": _KINDS[version][resource], "metadata": metadata, **fields}
        self.objects[resource, name] = thing
        return thing

    def add_pod(self, name: str, labels: dict[str, str], container: str, **status: Any) -> None:
        """Put a pod into the cluster."""
        spec = {"containers": [{"name": container, "image": "phf"}]}
        metadata = {"labels": labels, "annotations": status.pop("annotations", {})}
        self.add("v1", "pods", name, metadata=metadata, spec=spec, status=status)

    def named(self, resource: str) -> list[str]:
        """Return the names of the objects of a kind."""
        return [name for kind, name in self.objects if kind == resource]


@contextmanager
def serve(folder: Path) -> Iterator[Api]:
    """Start a server with an empty namespace `phf`, and write a kubeconfig for it, `FOLDER/config`."""
    api = Api()
    api.add("v1", "namespaces", "phf")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    api.server = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": {"server": api.server}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "users": [{"name": "tests", "user": {"token": "not-a-secret-of-anybody"}}],
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: the second would wait for kubectl to acknowledge the first.
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self._asked()
        if path == ["api"]:
            self._send({"kind": "APIVersions", "versions": ["v1"]})
        elif path == ["apis"]:
            self._send({"kind": "APIGroupList", "apiVersion": "v1", "groups": self._groups()})
        elif (version := "/".join(path[1:])) in self.api.versions:
            self._send({"kind": "APIResourceList", "groupVersion": version, "resources": self._resources(version)})
        elif path[:2] == ["openapi", "v3"]:
            self._send(self._checks("/".join(path[3:])) if path[2:] else {"paths": self._groups_with_checks()})
        elif path[-1:] == ["exec"]:
            self.api.executed.append((path[-2], query["command"]))
            self._end_execution()
        elif path[-1:] == ["log"]:
            self._send_text(self._log(path[-2], query), "text/plain")
        else:
            self._get(path, query)

    def do_POST(self) -> None:
        path, _ = self._asked()
        thing = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        resource, name = path[-1], thing["metadata"]["name"]
        if (resource, name) in self.api.objects:
            self._refuse(409, "AlreadyExists", f'{resource} "{name}" already exists')
            return
        self.api.objects[resource, name] = thing
        self._send(thing, 201)

    def do_PATCH(self) -> None:
        path, _ = self._asked()
        thing = self.api.objects[path[-2], path[-1]]
        thing["spec"] |= json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]
        self._send(thing)

    def _log(self, pod: str, query: dict[str, list[str]]) -> str:
        """Return the lines of a log; three are printed a second, and the last may have no end yet."""
        lines = self.api.logs[pod].splitlines(keepends=True)
        times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number / 3) for number in range(len(lines))]
        self.api.sent = []
        for time, line in list(zip(times, lines, strict=True))[-int(query.get("tailLines", ["1000000"])[0]) :]:
            if "sinceTime" not in query or time >= datetime.fromisoformat(query["sinceTime"][0]):
                self.api.sent.append(f"{time.isoformat()} {line}" if "timestamps" in query else line)
        return "".join(self.api.sent)

    def _asked(self) -> tuple[list[str], dict[str, list[str]]]:
        url = urlsplit(self.path)
        return url.path.strip("/").split("/"), parse_qs(url.query)

    def _groups(self) -> list[Any]:
        found = []
        for version in self.api.versions:
            group, _, number = version.rpartition("/")
            each = {"groupVersion": version, "version": number}
            found += [{"name": group, "versions": [each], "preferredVersion": each}] if group else []
        return found

    def _groups_with_checks(self) -> dict[str, Any]:
        found = {}
        for version in self.api.versions:
            path = f"apis/{version}" if "/" in version else f"api/{version}"
            found[path] = {"serverRelativeURL": f"/openapi/v3/{path}"}
        return found

    def _checks(self, version: str) -> Any:
        """Return that this server checks fields itself, so that kubectl does not."""
        group, _, number = version.rpartition("/")
        paths = {
            f"/{resource}": {
                "patch": {
                    "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "responses": {},
                }
            }
            for resource, kind in self.api.versions[version].items()
        }
        return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": paths}

    def _resources(self, version: str) -> list[Any]:
        verbs = ["create", "delete", "get", "list", "patch"]
        return [
            {
                "name": name,
                "singularName": kind.lower(),
                "kind": kind,
                "namespaced": kind != "Namespace",
                "verbs": verbs,
            }
            for name, kind in self.api.versions[version].items()
        ]

    def _get(self, path: list[str], query: dict[str, list[str]]) -> None:
        every = {resource: version for version, kinds in self.api.versions.items() for resource in kinds}
        if path[-1] in every:
            wanted = dict(each.split("=") for each in query.get("labelSelector", [""])[0].split(",") if each)
            items = [
                thing
                for (resource, _), thing in self.api.objects.items()
                if resource == path[-1] and wanted.items() <= thing["metadata"].get("labels", {}).items()
            ]
            version = every[path[-1]]
            kind = f"{self.api.versions[version][path[-1]]}List"
            self._send({"apiVersion": version, "kind": kind, "metadata": {}, "items": items})
        elif path[-2] in self.api.forbidden:
            self._refuse(403, "Forbidden", f'{path[-2]} "{path[-1]}" is forbidden')
        elif thing := self.api.objects.get((path[-2], path[-1])):
            self._send(thing)
        else:
            self._refuse(404, "NotFound", f'{path[-2]} "{path[-1]}" not found')

    def _send(self, thing: Any, code: int = 200) -> None:
        self._send_text(json.dumps(thing), "application/json", code)

    def _send_text(self, text: str, kind: str, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _refuse(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._send({**status, "reason": reason, "message": message}, code)

    def _end_execution(self) -> None:
        """Report over a WebSocket that the command has succeeded: channel 3 carries its status."""
        # RFC 6455
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.send_header("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
        self.end_headers()
        status = b"\x03" + json.dumps({"kind": "Status", "apiVersion": "v1", "status": "Success"}).encode()
        closing = struct.pack("!H", 1000)
        self.wfile.write(bytes([0x82, len(status)]) + status + bytes([0x88, len(closing)]) + closing)
        self.close_connection = True
