"""Ports for what a test starts."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Of this machine, and nobody's just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
