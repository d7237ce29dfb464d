"""`phf doctor` names ports of Ray that other machines can reach, with real sockets."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from scorers.doctor import machine, ray_ports


@contextlib.contextmanager
def listening(host: str) -> Iterator[int]:
    """A server that accepts connections and says nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        yield server.getsockname()[1]


@contextlib.contextmanager
def dashboard(status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def head(status: grpc.StatusCode | None) -> Iterator[int]:
    """A server that ends every call with a status, as a head of Ray does."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, _: object) -> grpc.RpcMethodHandler:
            def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
                if status is not None:
                    context.abort(status, "refused")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(None)


def found(monkeypatch: pytest.MonkeyPatch, **ports: int) -> list[ray_ports.OpenPort]:
    known = {
        port: (name, ray_ports.HTTP if name.startswith("http") else ray_ports.GRPC) for name, port in ports.items()
    }
    monkeypatch.setattr(ray_ports, "PORTS", known)
    return ray_ports.open_ports()


def test_ports_beyond_the_loopback_are_found_with_their_protection(monkeypatch):
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    with (
        dashboard(200) as open_http,
        dashboard(401) as safe_http,
        head(None) as open_head,
        head(unauthenticated) as safe,
    ):
        ports = found(monkeypatch, http_open=open_http, http_safe=safe_http, grpc_open=open_head, grpc_safe=safe)
    assert {each.what: each.asks_for_token for each in ports} == {
        "http_open": False,
        "http_safe": True,
        "grpc_open": False,
        "grpc_safe": True,
    }
    assert {each.address for each in ports} <= {"0.0.0.0", "::"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_the_loopback_is_not_named(monkeypatch, host):
    try:
        with listening(host) as port:
            assert found(monkeypatch, grpc_local=port) == []
    except OSError:
        pytest.skip(f"{host} is not an address of this machine")


def test_what_does_not_answer_counts_as_open(monkeypatch):
    monkeypatch.setattr(ray_ports, "_ANSWER_S", 0.2)
    with listening("0.0.0.0") as silent:
        (port,) = found(monkeypatch, http_silent=silent)
        assert not port.asks_for_token


def test_doctor_says_what_to_do(monkeypatch):
    with dashboard(200) as port:
        found(monkeypatch, http_dashboard=port)
        (fact,) = machine._ray_ports()
    assert fact.text == f"{port} (http_dashboard) on 0.0.0.0, does not ask for a token"
    assert fact.remedy is not None
    assert f"Whoever reaches port {port} can run code" in fact.remedy
    assert "RAY_AUTH_MODE=token" in fact.remedy
    assert list(machine._ray_ports()) == [], "the port is closed again"
