"""Starting vLLM where one ended that nobody stopped, and where nothing can be started. Processes are real, vLLM is none."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_core.config import VllmSettings
from lightning_core.epoch import services
from lightning_core.policies import vllm as module
from lightning_core.policies.vllm import VllmServer, VllmState
from lightning_core.process.linux import created, group_members, is_running


@pytest.fixture
def dead(tmp_path: Path) -> VllmState:
    """What is on record of a server that is gone, and left an engine and a socket."""
    folder = tmp_path / "lf-vllm-x"
    folder.mkdir()
    engine = "import os, time\nif os.fork() == 0: time.sleep(300)\ntime.sleep(0.5)"
    process = subprocess.Popen(["python3", "-c", engine], start_new_session=True)
    started = created(process.pid)
    process.wait()
    state = VllmState(
        pid=process.pid, started=started, socket=str(folder / "s"), model="m", served_name="policy", version="v0001",
        weights="w", lora_rank=None, log="vllm.log", command=[], start_timeout_s=1,
    )  # fmt: skip
    VllmServer(state, tmp_path)._note(state)
    return state


def test_what_a_dead_vllm_left_is_ended_before_the_next_is_started(
    tmp_path: Path, dead: VllmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VllmServer.known(tmp_path) and len(group_members(dead.pid, dead.started)) == 1
    monkeypatch.setattr(module, "command", lambda *_: ["/no/such/program", "--dtype", "float32"])
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        VllmServer.start(VllmSettings.model_validate({}), tmp_path, "policy", home=tmp_path)
    assert group_members(dead.pid, dead.started) == [] and not Path(dead.socket).parent.exists()
    assert time.monotonic() - began < 5


def test_a_record_that_cannot_be_written_is_not_taken_for_true(
    tmp_path: Path, dead: VllmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    server = VllmServer(dead, tmp_path)
    monkeypatch.setattr(module.os, "rename", full)
    with pytest.raises(OSError, match="no space"):
        server.serves(Path("other"), "v0002")
    assert server.state == dead and [f.name for f in (tmp_path / "services").iterdir()] == ["vllm.json"]
    monkeypatch.undo()
    server.serves(Path("other"), "v0002")
    assert server.refresh() and server.state == replace(dead, weights="other", version="v0002")
    server.stop()


def test_stopping_what_a_killed_flow_left_ends_also_what_a_dead_vllm_left(tmp_path: Path, dead: VllmState) -> None:
    services.stop_orphans(tmp_path)
    assert group_members(dead.pid, dead.started) == [] and not Path(dead.socket).parent.exists()
    assert VllmServer.known(tmp_path) is None


def test_a_process_stays_the_same_where_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    me = created(os.getpid())
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
    assert is_running(os.getpid(), me)
    assert not is_running(os.getpid(), me - 0.1)
    with pytest.raises(ProcessLookupError):
        created(2**22 + 1)
