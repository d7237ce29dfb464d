"""Find Ray's ports on this machine that other machines can reach, and whether Ray asks for a token there.

Whoever reaches one of them without a token runs code as the user who started Ray.
"""

import http.client
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HTTP, GRPC = "http", "grpc"
# Default ports of `ray start`, what listens there, and how it speaks.
PORTS = {
    6379: ("head", GRPC),
    8265: ("dashboard and Jobs API", HTTP),
    10001: ("client server", GRPC),
    52365: ("dashboard agent", HTTP),
}
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = "0A"
_ANSWER_S = 2.0
# Calls that every Ray answers, as in `pipeline.labelling.on_ray.token`.
_CALLS = (("/ray.rpc.NodeInfoGcsService/GetClusterId", b""), ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class OpenPort:
    """A port of Ray that listens beyond the loopback.

    Attributes:
        port, what: the port, and what Ray has there.
        address: the address that it is bound to; unspecified for all of the machine.
        asks_for_token: whether it refused a call without a token.
    """

    port: int
    what: str
    address: str
    asks_for_token: bool


def open_ports() -> list[OpenPort]:
    """Return the ports of Ray that listen on other addresses than the loopback; empty where that cannot be read."""
    found: dict[int, Address] = {}
    for address, port in _listening():
        if port in PORTS and not address.is_loopback:
            found.setdefault(port, address)
    return [
        OpenPort(port, PORTS[port][0], str(address), _asks_for_token(address, port))
        for port, address in sorted(found.items())
    ]


def _listening() -> Iterator[tuple[Address, int]]:
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == _LISTENING:
                host, port = local.split(":")
                yield _address(bytes.fromhex(host)), int(port, 16)


def _address(words: bytes) -> Address:
    """The address of words of 32 bits in the order of this machine; all that run phf are little-endian."""
    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    address = ipaddress.ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address


def _asks_for_token(address: Address, port: int) -> bool:
    local = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    host = str(local if address.is_unspecified else address)
    return _http_refuses(host, port) if PORTS[port][1] == HTTP else _grpc_refuses(host, port)


def _http_refuses(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/api/version")
        return connection.getresponse().status in (401, 403)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _grpc_refuses(host: str, port: int) -> bool:
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return False
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method, request in _CALLS:
            try:
                channel.unary_unary(method)(request, metadata=[("client_id", "phf")], timeout=_ANSWER_S)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    return True
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    return False
    return False
