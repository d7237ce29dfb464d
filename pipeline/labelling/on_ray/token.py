"""Bring the token that a cluster asks for: Ray does so only for `auto`, and calls the refusal a timeout."""

import os
from pathlib import Path

from scorers.errors import UserError

# Seconds for a cluster to answer; one that does not is left to Ray, which tries for longer.
_ANSWER_S = 10.0
# What every Ray answers, of the server for clients (`ray://`; a request of type PING) and of a head's own.
_CLIENT_CALL = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")
_HEAD_CALL = ("/ray.rpc.NodeInfoGcsService/GetClusterId", b"")


def bring_token(address: str) -> None:
    """See to it that Ray shows the user's token to a cluster that asks for one, and to no other.

    Since Ray 2.60 a head asks for a token where its machine has one, which the first local Ray leaves there. What the
    user has set (`RAY_AUTH_MODE`) holds. To be called before Ray is imported, since it reads its environment then.
    `auto` and clusters behind TLS are left to Ray.

    Args:
        address: `host:port` or `ray://host:port`, where somebody answers.

    Raises:
        UserError: it asks for a token, and the user's is another, or there is none, or it is not to be shown.
    """
    scheme, _, place = address.rpartition("://")
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if not place.rpartition(":")[2].isdigit() or mode not in ("", "token", "disabled") or _behind_tls():
        return
    method, request = _CLIENT_CALL if scheme else _HEAD_CALL
    if not _refused(place, method, request, None):
        return
    problem = f"The Ray cluster {address} asks for a token"
    if mode == "disabled":
        raise UserError(f"{problem}, and RAY_AUTH_MODE=disabled keeps yours back. Unset it, or set it to token.")
    token, origin = _token()
    if token is None:
        raise UserError(f"{problem}. Put it into RAY_AUTH_TOKEN, or into {origin}.")
    if _refused(place, method, request, token):
        raise UserError(f"{problem}, and the one in {origin} is not its. Put that of the cluster there.")
    os.environ["RAY_AUTH_MODE"] = "token"


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
