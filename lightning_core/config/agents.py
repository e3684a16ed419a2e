"""The agent, its tasks and its rollouts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from lightning_core.config.section import Section


class AgentSettings(Section):
    """The agent, as it is: a Python callable or any command."""

    callable: str | None = Field(
        None, description="`package.module:function` or `path/to/file.py:function`; called with the task"
    )
    command: str | list[str] | None = Field(
        None, description="a command line; gets the task as JSON on stdin and in $LIGHTNING_TASK"
    )
    python: Path | None = Field(
        None,
        description="the agent's own Python: an interpreter, a virtual environment, or a requirements.txt for which one "
        "is made, once; default: the flow's",
    )
    environments: Path = Field(
        Path("var/environments"), description="folder for environments that are made, shared by all runs"
    )
    working_directory: Path | None = Field(
        None, description="where the agent runs; default: where the flow was started"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="extra environment variables")
    pass_environment: list[str] = Field(
        default_factory=list,
        description="variables handed on from the flow's own environment by name (secrets); where the agent's output or error holds a value of six characters or more, `[NAME]` is stored in its place",
    )
    timeout_s: float = Field(
        120, gt=0, description="seconds until an attempt is ended and counted as the agent's failure"
    )
    preload: list[str] = Field(
        default_factory=lambda: [
            "openai",
            "opentelemetry.sdk.trace.export",
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        ],
        description="modules the process pool imports once, before the first attempt of a callable",
    )

    @model_validator(mode="after")
    def _one_of(self) -> AgentSettings:
        if (self.callable is None) == (self.command is None):
            raise ValueError("give exactly one of `callable` and `command`")
        if self.callable is not None and ":" not in self.callable:
            raise ValueError(f"callable {self.callable!r}: write it as `module:function` or `path/to/file.py:function`")
        return self


class TaskSettings(Section):
    """Where tasks come from: `module:function` (returns a list of dicts) or a .jsonl / .json / .parquet file.

    A task's field `id` names it, or else the number of its row.
    """

    train: str = Field(description="tasks to train on")
    evaluate: str | None = Field(None, description="held-out tasks; without them nothing is evaluated")


class RolloutSettings(Section):
    tasks_per_epoch: int = Field(8, ge=1, description="tasks drawn, without repeats until all were seen")
    group_size: int = Field(8, ge=1, description="rollouts of each task")
    unsolved_per_epoch: int = Field(
        0,
        ge=0,
        description="on top of `tasks_per_epoch`, at most so many tasks of the epoch before that not all rollouts solved, drawn by the share that did not (prioritized sampling)",
    )
    shuffle: bool = Field(
        True,
        description="drawn in a seeded order, another each time round; false: in the order given (one that mixes kinds of tasks evenly gives epochs that do)",
    )
    concurrency: int = Field(16, ge=1, description="attempts that run at the same time, over all shards")
    shards: int = Field(4, ge=1, description="Prefect tasks the rollouts of an epoch are spread over")
    retries: int = Field(
        2, ge=0, description="further attempts after a failure of the infrastructure (never after the agent's)"
    )
