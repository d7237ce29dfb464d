"""Authentication tokens of Ray: a new one for each local Ray, and the user's for a cluster that requires one.

Ray itself uses the user's token only for `auto`, and reports a refusal as a timeout.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from scorers.errors import UserError

# Seconds for a cluster to answer; after that, connecting is left to Ray, which tries for longer.
_ANSWER_S = 10.0
# Calls that every Ray answers: of the client server (`ray://`; a request of type PING), and of the head itself.
_CLIENT_CALL = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")
_HEAD_CALL = ("/ray.rpc.NodeInfoGcsService/GetClusterId", b"")


@contextlib.contextmanager
def new_token() -> Iterator[None]:
    """Set a new token for the Ray that this process starts. Without one, Ray writes a world-readable one to ~/.ray."""
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        yield


@contextlib.contextmanager
def user_token(address: str) -> Iterator[None]:
    """Use the user's token for a cluster that requires one, and for no other.

    Since Ray 2.60 a head requires a token if its machine has one, which the first local Ray leaves there. The user's
    own setting (`RAY_AUTH_MODE`) takes precedence. `auto` and clusters behind TLS are left to Ray.

    Args:
        address: reachable `host:port` or `ray://host:port`.

    Raises:
        UserError: the cluster requires a token, and the user's is missing, wrong, or disabled.
    """
    with _environment({"RAY_AUTH_MODE": "token"} if _requires_token(address) else {}):
        yield


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        _reload_token()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    # Not after an error: a Ray that was not shut down still needs its token.
    _reload_token()


def _reload_token() -> None:
    """Make Ray's native code read mode and token again; it caches them for the life of the process."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:  # a Ray without tokens
        return
    # The order matters for threads that are still running; `ray._private.authentication_test_utils` does the same.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _requires_token(address: str) -> bool:
    """Whether a cluster requires a token; checks that the user's is accepted. For errors see `user_token`."""
    scheme, _, place = address.rpartition("://")
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if not place.rpartition(":")[2].isdigit() or mode not in ("", "token", "disabled") or _uses_tls():
        return False
    method, request = _CLIENT_CALL if scheme else _HEAD_CALL
    if not _is_refused(place, method, request, None):
        return False
    problem = f"The Ray cluster {address} requires a token"
    if mode == "disabled":
        raise UserError(f"{problem}, but RAY_AUTH_MODE=disabled withholds yours. Unset it, or set it to token.")
    token, origin = _token()
    if token is None:
        raise UserError(f"{problem}. Put it into RAY_AUTH_TOKEN, or into {origin}.")
    if _is_refused(place, method, request, token):
        raise UserError(f"{problem}, and refuses the one in {origin}. Put the cluster's token there.")
    return True


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _token() -> tuple[str | None, str]:
    """The user's token, or None, and where it is or should be; in Ray's own order of precedence."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip() or None, str(path)
    except (OSError, UnicodeDecodeError):
        return None, str(path)


def _is_refused(place: str, method: str, request: bytes, token: str | None) -> bool:
    """Whether the cluster refuses a call because of a missing or wrong token."""
    import grpc  # type: ignore[import-untyped]

    metadata = [("client_id", "phf")] + ([("authorization", f"Bearer {token}")] if token else [])
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(request, metadata=metadata, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
