"""The agent, its tasks and its rollouts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from lightning_core.config.section import Section, known_or_sql

LAPS = ("shuffled", "in_order")  # samplers under which no task comes twice before all were seen
SAMPLERS = (*LAPS, "unsolved")


class LimitSettings(Section):
    """What an attempt may take of the machine. One that takes more fails by itself, and its neighbours go on."""

    processes: int = Field(
        2048, ge=1, description="processes and threads of one attempt, at the same time; with more it is ended"
    )
    memory_mb: int | None = Field(
        None, ge=64, description="MB of memory of its own for each process; default: half of what the machine has"
    )
    open_files: int = Field(4096, ge=16, description="open files of each process")
    file_mb: int = Field(8192, ge=1, description="MB of the largest file that it may write")
    output_mb: int = Field(
        1024,
        ge=1,
        description="MB that it may print to stdout, and to stderr (what is kept is the first and last 256 KB)",
    )


class AgentSettings(Section):
    """The agent, as it is: a Python callable or any command."""

    callable: str | None = Field(
        None, description="`package.module:function` or `path/to/file.py:function`; it is called with the task"
    )
    command: str | list[str] | None = Field(
        None, description="a command line; it gets the task as JSON on stdin and in the file $LIGHTNING_TASK"
    )
    python: Path | None = Field(
        None,
        description="the agent's own Python: an interpreter, a virtual environment, or a requirements.txt from "
        "which an environment is created once; default: the flow's Python",
    )
    environments: Path = Field(
        Path("var/environments"), description="folder for the environments created, shared by all runs"
    )
    working_directory: Path | None = Field(
        None, description="where the agent runs; default: the folder in which the flow was started"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="extra environment variables")
    pass_environment: list[str] = Field(
        default_factory=list,
        description="names of variables passed on from the flow's environment (secrets); if the agent's output or error contains a value of six characters or more, `[NAME]` is stored in its place",
    )
    timeout_s: float = Field(
        120, gt=0, description="seconds after which an attempt is ended and counts as the agent's failure"
    )
    limits: LimitSettings = Field(default_factory=LimitSettings, description="what an attempt may take of the machine")
    preload: list[str] = Field(
        default_factory=lambda: [
            "openai",
            "opentelemetry.sdk.trace.export",
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        ],
        description="modules that the process pool imports once, before the first attempt of a callable",
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

    A task's id is its field `id`, or else the number of its row.
    """

    train: str = Field(description="tasks to train on")
    evaluate: str | None = Field(None, description="held-out tasks; without them nothing is evaluated")
    sampler: str = Field(
        "shuffled",
        description="how an epoch's tasks are drawn: `shuffled` (a seeded order, none twice before all were seen), `in_order` (as they are given), `unsolved` (kinds of tasks that are not solved yet come more often: sql/plan/unsolved.sql), or a .sql file of your own",
    )

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str) -> str:
        return known_or_sql(name, SAMPLERS)


class RolloutSettings(Section):
    tasks_per_epoch: int = Field(8, ge=1, description="tasks of a training epoch, drawn as `tasks.sampler` says")
    group_size: int = Field(8, ge=1, description="rollouts of each task")
    replaced_groups: int = Field(
        0,
        ge=0,
        description="groups that teach no policy (all their rollouts alike) are replaced by those of further tasks, so many in an epoch at most; 0: none",
    )
    concurrency: int = Field(16, ge=1, description="attempts that run at the same time, over all shards")
    shards: int = Field(4, ge=1, description="number of Prefect tasks that share the rollouts of an epoch")
    retries: int = Field(
        2, ge=0, description="further attempts after an infrastructure failure (never after the agent's own)"
    )
