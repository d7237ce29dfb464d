"""Ports for tests."""

import socket


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port
