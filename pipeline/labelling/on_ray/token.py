"""The token of a Ray: a new one for each that we start, and the user's for a cluster that asks for one.

Ray itself brings the user's only for `auto`, and calls the refusal a timeout.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from scorers.errors import UserError

# Seconds for a cluster to answer; one that does not is left to Ray, which tries for longer.
_ANSWER_S = 10.0
# What every Ray answers, of the server for clients (`ray://`; a request of type PING) and of a head's own.
_CLIENT_CALL = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")
_HEAD_CALL = ("/ray.rpc.NodeInfoGcsService/GetClusterId", b"")


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """A new token for the Ray that this process starts. Without one, Ray writes its own to ~/.ray, readable by all."""
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        yield


@contextlib.contextmanager
def users_token(address: str) -> Iterator[None]:
    """Show the user's token to a cluster that asks for one, and to no other.

    Since Ray 2.60 a head asks for a token where its machine has one, which the first local Ray leaves there. What the
    user has set (`RAY_AUTH_MODE`) holds. `auto` and clusters behind TLS are left to Ray.

    Args:
        address: `host:port` or `ray://host:port`, where somebody answers.

    Raises:
        UserError: it asks for a token, and the user's is another, or there is none, or it is not to be shown.
    """
    with _environment({"RAY_AUTH_MODE": "token"} if _asks_for_token(address) else {}):
        yield


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        _read_again()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    # Not after an error: what is left of a Ray that was not shut down dies where its token is gone.
    _read_again()


def _read_again() -> None:
    """Ray's native code reads mode and token once in a process, and keeps them for every later Ray."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:  # a Ray that knows no tokens yet
        return
    # In this order, for the sake of threads that have not ended: as `ray._private.authentication_test_utils` does.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _asks_for_token(address: str) -> bool:
    """Whether a cluster asks for a token and the user's is the right one; raises as `users_token`."""
    scheme, _, place = address.rpartition("://")
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if not place.rpartition(":")[2].isdigit() or mode not in ("", "token", "disabled") or _behind_tls():
        return False
    method, request = _CLIENT_CALL if scheme else _HEAD_CALL
    if not _refused(place, method, request, None):
        return False
    problem = f"The Ray cluster {address} asks for a token"
    if mode == "disabled":
        raise UserError(f"{problem}, and RAY_AUTH_MODE=disabled keeps yours back. Unset it, or set it to token.")
    token, origin = _token()
    if token is None:
        raise UserError(f"{problem}. Put it into RAY_AUTH_TOKEN, or into {origin}.")
    if _refused(place, method, request, token):
        raise UserError(f"{problem}, and the one in {origin} is not its. Put that of the cluster there.")
    return True


def _behind_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _token() -> tuple[str | None, str]:
    """The user's token, None where there is none, and where it is or could be; in the order in which Ray looks."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip() or None, str(path)
    except (OSError, UnicodeDecodeError):
        return None, str(path)


def _refused(place: str, method: str, request: bytes, token: str | None) -> bool:
    """Whether the cluster refuses a call for want of its token."""
    import grpc  # type: ignore[import-untyped]

    metadata = [("client_id", "phf")] + ([("authorization", f"Bearer {token}")] if token else [])
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(request, metadata=metadata, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
