"""A proxy between phf and a real object store that fails like networks and overloaded stores."""

import contextlib
import random
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO


@dataclass(frozen=True)
class Request:
    """A request's method and target, such as `PUT` and `/bucket/prefix/file`."""

    method: str
    target: str


class Fault:
    """The faults of a request."""

    REFUSE = "refuse"  # 503 SlowDown; the request never reaches the store
    CUT_BODY = "cut-body"  # the connection is cut in the middle of the request
    LOSE_ANSWER = "lose-answer"  # the store handles the request, and the answer is lost
    CUT_ANSWER = "cut-answer"  # the connection is cut in the middle of the answer


Plan = Callable[[Request], str | None]


@dataclass
class Proxy:
    """Forwards requests to `upstream` (host, port), except those that `plan` makes fail.

    Attributes:
        plan: returns the fault for each request; None lets it pass.
        delay_s: extra seconds for every request.
        done: number of requests by fault.
        passed: number of undisturbed requests.
    """

    upstream: tuple[str, int]
    plan: Plan = lambda request: None
    delay_s: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    passed: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Serve while the context is active; yields the endpoint."""
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), socket.create_connection(proxy.upstream) as store:
                    proxy._serve(self.connection, store)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        with Server(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()

    def _serve(self, client: socket.socket, store: socket.socket) -> None:
        """Handle the requests of one connection until either side closes it or a fault does."""
        asking, answering = client.makefile("rb"), store.makefile("rb")
        while head := _head(asking):
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            if b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = _body(asking, head)
            time.sleep(self.delay_s)
            fault = self.plan(Request(method, target))
            if fault:
                self.done[fault] += 1
            else:
                self.passed += 1
            if fault == Fault.REFUSE:
                client.sendall(_slow_down())
                continue
            if fault == Fault.CUT_BODY:
                store.sendall(head + body[: len(body) // 2])
                return
            store.sendall(head + body)
            answer = _head(answering)
            no_body = method == "HEAD" or answer.split(b" ", 2)[1] in (b"204", b"304")
            content = b"" if no_body else _body(answering, answer)
            if fault == Fault.LOSE_ANSWER:
                return
            if fault == Fault.CUT_ANSWER:
                client.sendall((answer + content)[: len(answer) + len(content) // 2 - (not content)])
                return
            client.sendall(answer + content)


def after(faults: dict[str, list[str]]) -> Plan:
    """The first requests of each method get its faults, one each."""
    left = {method: list(each) for method, each in faults.items()}
    lock = threading.Lock()

    def plan(request: Request) -> str | None:
        with lock:
            coming = left.get(request.method)
            return coming.pop(0) if coming else None

    return plan


def sometimes(share: float, seed: int) -> Plan:
    """Each request gets a random fault with probability `share`."""
    chance, lock = random.Random(seed), threading.Lock()
    kinds = [Fault.REFUSE, Fault.CUT_BODY, Fault.LOSE_ANSWER, Fault.CUT_ANSWER]

    def plan(request: Request) -> str | None:
        with lock:
            return chance.choice(kinds) if chance.random() < share else None

    return plan


def storm(seconds: float) -> Plan:
    """Every request is refused for `seconds` seconds from the first one on."""
    begun: list[float] = []

    def plan(request: Request) -> str | None:
        begun.append(time.monotonic())
        return Fault.REFUSE if time.monotonic() - begun[0] < seconds else None

    return plan


def _slow_down() -> bytes:
    error = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Slow down</Message></Error>'
    return b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (
        len(error),
        error,
    )


def _head(stream: IO[bytes]) -> bytes:
    """Request or status line and headers, up to the empty line after them; empty if the peer has disconnected."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _body(stream: IO[bytes], head: bytes) -> bytes:
    """The body that the headers announce, as sent."""
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        pieces = []
        while True:
            line = stream.readline()
            size = int(line.split(b";")[0], 16)
            pieces += [line, stream.read(size + 2)]
            if not size:
                return b"".join(pieces)
    return stream.read(int(headers.get(b"content-length", b"0")))
