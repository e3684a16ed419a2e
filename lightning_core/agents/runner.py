"""Running one attempt: durable start span, the agent, what it leaves, acknowledged root span.

    with Runner(settings.agent, model="policy", infrastructure_errors=failed_behind) as runner:
        result = run_rollout(runner, make_spec, retries=2)

`Runner.run` is thread-safe; progress and threads are the caller's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_core import names
from lightning_core.agents import program
from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.attempt_folder import AttemptFolder, LeftBehindError
from lightning_core.agents.attempt_outcome import outcome
from lightning_core.agents.child import PROMPTS_FILE, TASK_FILE
from lightning_core.agents.environment import attempt_environment, base_environment
from lightning_core.agents.pool import Ended, Pool, ServerLostError
from lightning_core.agents.secrets import Secrets
from lightning_core.agents.turns import Turns
from lightning_core.agents.venv import interpreter
from lightning_core.client import (
    STATUS_ERROR,
    STATUS_OK,
    DeliveryError,
    SpanData,
    fallback,
    new_span_id,
    new_trace_id,
    post_spans,
)
from lightning_core.config import AgentSettings
from lightning_core.process.forks import ForkServerError

log = logging.getLogger(__name__)

# Waits of the two durable spans: the start is cheap to give up (nothing ran), the root is not.
_START_RETRIES, _ROOT_RETRIES = 4, 8


class Runner:
    """Runs attempts of one agent.

    `infrastructure_errors` is asked what the gateway saw fail behind an attempt, also one that ended well: a text makes it
    the infrastructure's, for an agent may hide that calls failed. `logs` is a folder that keeps what attempts print.
    Raises SettingsError at once for settings that cannot work; lightning_core.checks finds those that take an import to find.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        model: str = "policy",
        infrastructure_errors: Callable[[AttemptResult], str | None] | None = None,
        logs: Path | None = None,
        kill_grace_s: float = 2.0,
    ) -> None:
        self._settings = settings
        self._model = model
        self._infrastructure_errors = infrastructure_errors
        self._logs = logs
        python = None if settings.python is None else interpreter(settings.python, settings.environments)
        self._environment = base_environment(settings, python=python)
        self._secrets = Secrets(settings.pass_environment, self._environment)
        self._program = program.resolve(settings, self._environment, kill_grace_s, python)
        self._folder = Path(tempfile.mkdtemp(prefix="lightning-"))
        self._pool = Pool(self._program, self._folder)
        self._turns = Turns()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Return whether `close` was called; what is run after that is an `infrastructure` failure."""
        return self._pool.closed

    def closes_within(self, seconds: float) -> bool:
        """Wait so long; return at once, and True, where it is closed."""
        return self._pool.closes_within(seconds)

    def close(self) -> None:
        """End every attempt still running, and remove what they left. From any thread; a second call does nothing."""
        self._pool.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, spec: AttemptSpec, alone: bool = False) -> AttemptResult:
        """Run one attempt. Returns when no process of it is left and the gateway has acknowledged its root span.

        `alone`: while no other of this runner's is under way. Where the fork server is lost then, that is its doing.

        A status of `infrastructure` says that this attempt decides nothing and another should be made: the gateway
        could not be reached, the machine failed, or the gateway saw calls fail behind it.
        """
        with self._turns.taken(alone):
            return self._run(spec, alone)

    def _run(self, spec: AttemptSpec, alone: bool) -> AttemptResult:
        trace_id, start_ns = new_trace_id(), time.time_ns()
        start = SpanData(names.SPAN_ROLLOUT_START, start_ns, start_ns, trace_id, new_span_id())
        start.attributes = spec.labels()
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self._new_folder(spec))
                self._post(spec, start, _START_RETRIES)
            except (DeliveryError, OSError) as error:
                problem = f"the attempt was not started: {error}"
                return AttemptResult(
                    spec.rollout_id, spec.attempt_id, "infrastructure", None, problem, start_ns, time.time_ns(), None
                )
            result = self._run_agent(spec, folder, start_ns, alone)
            result = replace(result, output=self._secrets.hide(result.output), error=self._secrets.hide(result.error))
            try:
                result = self._deliver_leftovers(spec, folder, result)
                self._post(spec, _root_span(spec, result, trace_id), _ROOT_RETRIES)
            except (DeliveryError, OSError) as error:
                problem = f"the end of the attempt could not be recorded: {error}"
                result = replace(result, status="infrastructure", error=problem)
        return result

    def _run_agent(self, spec: AttemptSpec, folder: AttemptFolder, start_ns: int, alone: bool) -> AttemptResult:
        kind = "command" if self._program.target is None else "callable"
        exit_code: int | None = None
        output: Any = None
        note: str | None = None
        problem: str | None
        lost = False
        began = time.monotonic_ns()  # a clock that jumps meanwhile makes the attempt no longer, and no shorter
        try:
            task_file = folder.path / TASK_FILE
            task_file.write_text(json.dumps(dict(spec.task), ensure_ascii=False), encoding="utf-8", errors="replace")
            prompts_file = None
            if spec.prompts:
                prompts_file = folder.path / PROMPTS_FILE
                prompts_file.write_text(json.dumps(spec.prompts, ensure_ascii=False), encoding="utf-8")
            environment = attempt_environment(self._environment, spec, task_file, self._model, prompts_file)
            ended = self._pool.run(kind, folder.path, task_file, environment, self._settings.timeout_s)
        except (ForkServerError, OSError) as error:
            lost = isinstance(error, ServerLostError)
            if lost and alone:
                status, problem = "error", f"the fork server ended with the attempt, also when that ran alone: {error}"
            else:
                status, problem = "infrastructure", f"{type(error).__name__}: {error}"
        else:
            exit_code = ended.code
            status, output, note, problem = outcome(kind, folder, ended, self._settings)
            if ended.left:
                log.info("%s: ended %d processes the agent had left behind", spec.rollout_id, ended.left)
            self._keep_logs(spec, ended)
        end_ns = start_ns + time.monotonic_ns() - began
        result = AttemptResult(
            spec.rollout_id, spec.attempt_id, status, output, problem, start_ns, end_ns, exit_code, note, lost
        )
        broken = None if status == "infrastructure" else self.failed_behind(result)
        if broken is None:
            return result
        return replace(result, status="infrastructure", error=f"{broken} (the agent then: {problem or 'ended well'})")

    def failed_behind(self, result: AttemptResult) -> str | None:
        """Return what failed behind an attempt, by `infrastructure_errors`."""
        if self._infrastructure_errors is None:
            return None
        try:
            return self._infrastructure_errors(result)
        except Exception as error:  # noqa: BLE001 - a gateway that cannot answer is no agent's failure
            return f"the gateway could not say whether calls failed behind it: {type(error).__name__}: {error}"

    def _post(self, spec: AttemptSpec, span: SpanData, retries: int) -> None:
        """Send a span of the runner's own, which no attempt can write."""
        post_spans(spec.base_url, _bearer(spec.secret), _resource(spec), [span], retries=retries)

    def _deliver_leftovers(self, spec: AttemptSpec, folder: AttemptFolder, result: AttemptResult) -> AttemptResult:
        """Send rewards that the agent's own processes could not deliver; they must be there before the root span is.

        Returns the result, of which it is the error where what was left cannot be sent.
        """
        try:
            lines = fallback.lines_left(folder.read(fallback.FILE_NAME, fallback.LIMIT_BYTES) or b"")
            fallback.send(lines, spec.base_url, _bearer(spec.token), retries=_ROOT_RETRIES)
        except LeftBehindError as error:
            return _with_error(result, str(error))
        except ValueError as error:
            return _with_error(result, f"what the attempt left as {fallback.FILE_NAME} cannot be sent: {error}")
        except DeliveryError as error:
            if not error.permanent:
                raise
            log.error("%s: %s", spec.rollout_id, error)
        return result

    def _new_folder(self, spec: AttemptSpec) -> AttemptFolder:
        if self.closed:
            raise OSError("the runner was closed")
        return AttemptFolder(self._folder, f"{spec.attempt_id[:16]}-")

    def _keep_logs(self, spec: AttemptSpec, ended: Ended) -> None:
        if self._logs is None or not (ended.stdout.total or ended.stderr.total):
            return
        folder = self._logs / spec.rollout_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ended.stdout.write(folder / f"{spec.attempt_id}.stdout")
            ended.stderr.write(folder / f"{spec.attempt_id}.stderr")
        except OSError as error:  # a full disk, or what the agent put there
            log.error("%s: what it printed is not kept: %s", spec.rollout_id, error)


def run_rollout(
    runner: Runner, make_spec: Callable[[str], AttemptSpec], retries: int, backoff_s: float = 1.0
) -> AttemptResult:
    """Run attempts of one rollout until one is not the infrastructure's failure, `retries` further ones at most.

    `make_spec` is called with a new attempt id for each execution. Waits `backoff_s`, then twice as long each time, 30 s
    at most. One that was lost with the fork server is repeated at once, alone, which is none of the `retries`. A runner
    that was closed meanwhile gets no further attempt.
    """
    for further in range(retries + 1):
        result = runner.run(make_spec(new_attempt_id()))
        if result.lost_with_server and not runner.closed:
            log.warning("%s: %s; it is run again, alone", result.rollout_id, result.error)
            result = runner.run(make_spec(new_attempt_id()), alone=True)
        if result.status != "infrastructure" or further == retries or runner.closed:
            return result
        wait_s = min(30.0, backoff_s * 2**further) * (0.75 + random.SystemRandom().random() / 2)
        log.warning("%s: %s; another attempt in %.1f s", result.rollout_id, result.error, wait_s)
        if runner.closes_within(wait_s):
            return result
    raise ValueError(f"retries is {retries}; it cannot be negative")


def new_attempt_id() -> str:
    """Return 16 hex digits that no other execution has."""
    return os.urandom(8).hex()


def _with_error(result: AttemptResult, problem: str) -> AttemptResult:
    """Return the result of an attempt in which this went wrong, too."""
    if result.status == "ok":
        return replace(result, status="error", output=None, output_note=None, error=problem)
    return replace(result, error=f"{result.error}; {problem}")


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _resource(spec: AttemptSpec) -> dict[str, str]:
    return {**spec.resource(), "service.name": "lightning-flows"}


def _root_span(spec: AttemptSpec, result: AttemptResult, trace_id: str) -> SpanData:
    attributes = spec.labels() | {
        names.TASK: json.dumps(dict(spec.task), ensure_ascii=False),
        names.OUTPUT: json.dumps(result.output, ensure_ascii=False),
        names.OUTPUT_NOTE: result.output_note,
        names.STATUS: result.status,
        names.ERROR: result.error,
    }
    status = STATUS_OK if result.status == "ok" else STATUS_ERROR
    root = SpanData(names.SPAN_ROLLOUT, result.start_ns, result.end_ns, trace_id, new_span_id(), attributes=attributes)
    root.status, root.status_message = status, result.error or ""
    return root
