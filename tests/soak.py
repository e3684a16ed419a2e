"""All faults at once, against a real gateway, lake, store and epochs, with an account at the end: `make soak`.

    python -m tests.soak [--minutes 10] [--seed N]

Three agents send spans without end, an epoch after the other is trained (with a canned model in vLLM's place), the lake is
published to a server of S3. Meanwhile, by chance: the gateway is killed and leaves a torn record, the flow is killed, the disk fills up, bits of
acknowledged records flip, clients stop half-way through a request, others send with forged tokens, the store is away. At the
end every acknowledged span is in the lake once, but for those whose bits were flipped, which are counted as damaged; nothing
forged counts; the epoch that was under way is brought to its end, and no rollout ran twice; and the store has what the lake has.

The disk is a tmpfs in a namespace of its own: `unshare` has to be allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import httpx
import yaml

from lightning_core.client import new_span_id, new_trace_id
from lightning_core.config import GatewaySettings
from lightning_core.epoch.services import claim_services
from lightning_core.files import locked
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake import ask, catalog
from lightning_core.lake.decode import Decoder
from lightning_core.lake.lake import Lake
from lightning_core.lake.storage import publish
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool import spool
from lightning_core.spool.spool_format import DAMAGED, segments
from lightning_flows.flows.prefect_api import prefect_api
from tests.e2e.kills import MULTIPLE
from tests.e2e.test_two_epochs import write_settings
from tests.integration.test_durability import KINDS, PROTOBUF, SENDER, kill, tear, times_in_lake
from tests.ports import free_port

DISK = "300m"
PAUSE_S = (1.0, 4.0)  # between two faults
COUNT = "SELECT count(*) AS spans FROM spans"
KEYS = {
    "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


class Gone(threading.Thread):
    """A way to the store that can be shut: connections through it end at once."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._to, self.open = port, True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self.open:
                client.close()
                continue
            with contextlib.suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._to))
                for a, b in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(a, b), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self.open and (data := source.recv(1 << 16)):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.close()


class Soak:
    """The faults, each a method, and what they did."""

    def __init__(self, home: Path, folder: Path, gateway: GatewaySettings, store: Gone, chance: random.Random) -> None:
        self.home, self.folder, self.settings, self.store, self.chance = home, folder, gateway, store, chance
        self.lake = Lake(home)
        self.handle = self.started()
        self.hit: set[str] = set()  # names of the spans whose bits were flipped
        self.flow: subprocess.Popen[bytes] | None = None
        self.done: Counter[str] = Counter()

    def started(self) -> GatewayHandle:
        return GatewayHandle.start(self.home, self.settings, self.folder / "gateway.log")

    def gateway_killed(self) -> None:
        kill(self.handle)
        tear(self.home, self.chance)
        self.handle = self.started()

    def flow_killed(self) -> None:
        if self.flow is not None and self.flow.poll() is None:
            os.kill(self.flow.pid, signal.SIGKILL)

    def disk_full(self) -> None:
        filler = self.home / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
            time.sleep(self.chance.uniform(0.5, 2))
        finally:
            filler.unlink()

    def bit_flipped(self) -> None:
        """In an acknowledged record of an agent that sends; those of the epoch are left alone, which has to come to its end."""
        with locked(self.lake.root / "lock"):
            start, end = self.lake.manifests.spans().decoded_offset, spool.durable_end(self.home / "spool")
            there = [entry for entry in spool.read(self.home / "spool", start, end) if entry[2].rollout_id is None]
            if not there:
                return
            first, last, record = self.chance.choice(there)
            spans, _ = Decoder(None).decode([(first, last, record)])
            offset, path = max(entry for entry in segments(self.home / "spool") if entry[0] <= first)
            at = self.chance.randrange(last - len(record.body), last)
            with path.open("r+b") as file:
                file.seek(at - offset)
                byte = file.read(1)[0]
                file.seek(at - offset)
                file.write(bytes([byte ^ (1 << self.chance.randrange(8))]))
            self.hit |= set(spans["name"].to_pylist())

    def clients_that_stop(self) -> None:
        for _ in range(20):
            with contextlib.suppress(OSError):
                half = socket.create_connection(("127.0.0.1", self.settings.port), timeout=5)
                half.sendall(
                    b"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n" + bytes(500)
                )
                threading.Timer(30, half.close).start()

    def forged(self) -> None:
        """Spans and rewards under a rollout of the epoch, with a token that the gateway did not mint."""
        span = SpanData("forged", time.time_ns(), time.time_ns(), new_trace_id(), new_span_id())
        span.attributes = {"agentlightning.reward.value": 1000.0, "lightning.rollout_id": "forged"}
        body, token = encode_request({}, [span]), self.handle.mint("forged", "a", "train")
        for bad in (token[:-2] + "xx", "nothing", ""):
            with contextlib.suppress(httpx.HTTPError):
                url = self.handle.attempt_url("forged", "a") + "/v1/traces"
                reply = httpx.post(url, content=body, headers=PROTOBUF | {"Authorization": f"Bearer {bad}"}, timeout=10)
                assert reply.status_code in (401, 403, 429, 503), f"a forged token was answered by {reply.status_code}"

    def store_away(self) -> None:
        self.store.open = not self.store.open

    def faults(self, until: float) -> None:
        kinds: list[Callable[[], None]] = [
            self.gateway_killed, self.flow_killed, self.disk_full, self.bit_flipped, self.bit_flipped,
            self.clients_that_stop, self.forged, self.store_away,
        ]  # fmt: skip
        while time.monotonic() < until:
            time.sleep(self.chance.uniform(*PAUSE_S))
            fault = self.chance.choice(kinds)
            fault()
            self.done[fault.__name__] += 1
            say(f"{max(0.0, until - time.monotonic()):.0f} s left: {fault.__name__}")
        self.store.open = True

    def train(self, settings: Path, until: float) -> int:
        """Epoch after epoch, and after `until` to the end of the one that is under way; returns how often a flow was started."""
        starts, last = 0, None
        while True:
            starts += 1
            with (self.folder / f"flow-{starts}.log").open("wb") as log:
                command = [sys.executable, "-m", "tests.e2e.without_vllm", "train", str(settings)]
                self.flow = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # ignored in the background
                )  # fmt: skip
                while self.flow.poll() is None:
                    time.sleep(0.2)
                    if time.monotonic() > until:
                        ended = self.lake.manifests.next_epoch("tiny")
                        last = ended if last is None else last
                        if ended > last:
                            os.kill(self.flow.pid, signal.SIGINT)
                            self.flow.wait(120)
                            return starts
            say(f"flow {starts} ended with {self.flow.returncode}; it is started again")

    def ingest(self, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(Exception):  # a full disk; what cannot be stored now is stored later
                self.lake.ingest()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def object_store() -> Iterator[Gone]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        store = Gone(port)
        store.start()
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}"}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                httpx.put(f"http://127.0.0.1:{port}/lakes", timeout=5)
                break
            time.sleep(0.2)
        yield store
    finally:
        server.kill()
        server.wait()


def soak(home: Path, folder: Path, minutes: float, seed: int) -> dict[str, object]:
    """Run it; returns the account. Raises AssertionError where it does not come out even."""
    chance = random.Random(seed)
    settings = GatewaySettings(port=free_port(), grpc_port=free_port(), spool_max_gb=0.05)
    with object_store() as store, prefect_api(folder / "prefect"):  # one server: those of flows that are killed stay
        url = "s3://lakes/soak"
        made = write_settings(folder, epochs=1000, evaluation={"every": 0}, lake={"storage": url}, home=str(home))
        content = yaml.safe_load(made.read_text()) | {"gateway": settings.model_dump(exclude_unset=True)}
        made.write_text(yaml.safe_dump(content))
        assert claim_services(home), "the gateway is this script's: flows find it"
        running = Soak(home, folder, settings, store, chance)
        stop = folder / "stop"
        endpoints = {"http": running.handle.url, "grpc": str(running.handle.grpc_url), "client": running.handle.url}
        (folder / "left").mkdir()
        environment = os.environ | {"TMPDIR": str(folder / "left"), "SEND_PAUSE_S": "0.05"}
        agents = [
            subprocess.Popen([*SENDER, kind, endpoints[kind], str(folder / kind), str(stop)], env=environment)
            for kind in KINDS
        ]
        until, ended = time.monotonic() + minutes * 60, threading.Event()
        faults = threading.Thread(target=running.faults, args=(until,))
        ingest = threading.Thread(target=running.ingest, args=(ended,))
        faults.start()
        ingest.start()
        try:
            starts = running.train(made, until)
            faults.join()
            stop.touch()
            assert [agent.wait(300) for agent in agents] == [0, 0, 0]
        finally:
            ended.set()
            ingest.join()
            for agent in agents:
                agent.kill()
                agent.wait()
            running.handle.stop()
        return account(running, url, starts) | {"seed": seed, "faults": dict(running.done)}


def account(running: Soak, url: str, starts: int) -> dict[str, object]:
    lake, folder = running.lake, running.folder
    found = times_in_lake(running.home)
    sent = [name for kind in KINDS for name in (folder / kind).read_text().splitlines()]
    missing = {name for name in sent if name not in found}
    twice = [name for name in sent if found.get(name, 0) > 1]
    assert not twice, f"{len(twice)} spans are there twice, the first is {twice[0]}"
    assert missing <= running.hit, f"{len(missing - running.hit)} acknowledged spans are missing"
    assert "forged" not in found, "forged spans are in the lake"
    lake.rebuild_catalog()
    publish(lake, url)
    with catalog.connect(lake.root) as con:
        [damaged] = con.execute("SELECT count(*) FROM rejections WHERE reason = ?", [DAMAGED]).fetchone() or (0,)
    assert ask.answer(url, COUNT, "csv") == ask.answer(lake.root, COUNT, "csv"), "the store has another lake"
    epochs = [epoch for epoch in lake.manifests.epochs("tiny", "train") if epoch.recorded]
    files = [str(lake.root / file.path) for file in lake.manifests.spans().files]
    repeated = duckdb.execute(MULTIPLE, [files]).fetchall()
    assert not repeated, f"rollouts ran twice: {repeated[:3]}"
    return {
        "acknowledged": len(sent), "missing_of_flipped": len(missing), "damaged_records": damaged,
        "epochs": len(epochs), "flow_starts": starts,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--on-disk", type=Path, help=argparse.SUPPRESS)  # within the namespace
    options = parser.parse_args()
    if options.on_disk is None:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            disk = Path(folder) / "disk"
            disk.mkdir()
            again = [sys.executable, "-m", "tests.soak", "--minutes", str(options.minutes), "--seed", str(options.seed)]
            mount = f'mount -t tmpfs -o size={DISK} none "$1" && shift && exec "$@"'
            command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(disk), *again, "--on-disk", str(disk)]
            sys.exit(subprocess.run(command).returncode)
    say(f"seed {options.seed}")
    folder = options.on_disk.parent
    say(json.dumps(soak(options.on_disk / "home", folder, options.minutes, options.seed)))


if __name__ == "__main__":
    main()
