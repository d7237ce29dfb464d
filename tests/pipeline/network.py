"""Ports for tests."""

import socket


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port
