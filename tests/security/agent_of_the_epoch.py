"""The agent of an epoch: a task says whether an attempt works honestly, or tries everything at once and how it then ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))

import agents_that_attack
import attackers

EVERYTHING = (
    *(
        "reward_a_neighbour",
        "reward_a_neighbour_by_grpc",
        "name_the_grader",
        "pose_as_the_grader",
        "pose_as_the_runner",
    ),
    *("pose_as_the_gateway", "let_the_runner_deliver"),
)
_open: list[socket.socket] = []


def run(task: dict[str, Any]) -> Any:
    """The honest ones stay until all attackers have done what they do; these wait for an honest one to attack."""
    done, victims = Path(task["done"]), Path(task["victims"])
    if not task["attacks"]:
        attackers.leave(task | {"victims": f"{victims}.{os.getpid()}"})
        Path(f"{victims}.{os.getpid()}").replace(victims)
        while len(list(done.iterdir())) < task["attackers"]:
            time.sleep(0.01)
        return attackers.ask()
    while not victims.exists():
        time.sleep(0.01)
    for attack in EVERYTHING:
        getattr(attackers, attack)(task)
    send_huge_bodies()
    send_slow_bodies()
    answer = attackers.ask()
    (done / os.environ["LIGHTNING_ROLLOUT_ID"]).touch()
    if task["ends"] is None:
        return answer
    return getattr(agents_that_attack, task["ends"])(task) or answer


def send_huge_bodies() -> None:
    """More than the gateway takes, as spans and as a call."""
    huge = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    for place, kind in (("/v1/traces", "application/x-protobuf"), ("/v1/chat/completions", "application/json")):
        url = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + place
        with contextlib.suppress(OSError):  # refused, before or after it is read
            urllib.request.urlopen(urllib.request.Request(url, huge, headers | {"Content-Type": kind})).close()


def send_slow_bodies() -> None:
    """Requests whose bodies never come to their end, for as long as this process lives."""
    to = urlsplit(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
    head = f"POST {to.path}/v1/traces HTTP/1.1\r\nHost: {to.netloc}\r\nContent-Type: application/x-protobuf\r\n"
    head += f"Authorization: Bearer {os.environ['OPENAI_API_KEY']}\r\nContent-Length: 1000\r\n\r\n"
    for _ in range(20):
        _open.append(socket.create_connection((to.hostname, to.port)))
        _open[-1].sendall(head.encode() + b"\n")
