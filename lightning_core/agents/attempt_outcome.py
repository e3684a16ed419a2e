"""How an attempt ended, by what its process left: an exit code, what it printed, and the result that child.py wrote."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any

from lightning_core.agents.attempt import OUTPUT_LIMIT, jsonable
from lightning_core.agents.attempt_folder import AttemptFolder, LeftBehindError
from lightning_core.agents.child import RESULT_BYTES, RESULT_FILE
from lightning_core.agents.pool import Ended
from lightning_core.config import AgentSettings

_STDERR_CHARS, _NOTE_CHARS, _ERROR_CHARS = 2000, 1000, 8000


def outcome(
    kind: str, folder: AttemptFolder, ended: Ended, settings: AgentSettings
) -> tuple[str, Any, str | None, str | None]:
    """Return status, output, note on the output, error."""
    if ended.timed_out:
        problem = f"the agent took longer than {settings.timeout_s:g} s (agent.timeout_s) and was ended"
        return "timeout", None, None, problem
    if ended.threads is not None:
        problem = f"the agent had {ended.threads} processes and threads, more than agent.limits.processes ({settings.limits.processes})"
        return "error", None, None, f"{problem}, and was ended"
    if ended.stdout.is_too_long or ended.stderr.is_too_long:
        problem = f"the agent printed more than {settings.limits.output_mb} MB (agent.limits.output_mb)"
        return "error", None, None, problem
    if kind == "callable":
        try:
            result = _read_result(folder, ended)
        except LeftBehindError as error:
            return "error", None, None, _with_stderr(str(error), ended)
        if result.error:
            return "error", None, None, result.error
        if ended.code == 0:
            return "ok", result.output, result.note, None
    if ended.code != 0:
        return "error", None, None, _with_stderr(f"the agent ended with {exit_text(ended.code)}", ended)
    line, cut = ended.stdout.last_line()
    if cut or len(line) > OUTPUT_LIMIT:
        return "ok", line[-OUTPUT_LIMIT:], "the last line printed was too long; its end is kept", None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "ok", line or None, None, None
    output, note = jsonable(value)
    return "ok", line if note else output, None, None


@dataclass(frozen=True)
class _Returned:
    """What the callable returned or raised, as child.py writes it: the agent can write there, too."""

    output: Any = None
    note: str | None = None
    error: str | None = None


def _read_result(folder: AttemptFolder, ended: Ended) -> _Returned:
    """Read what the callable returned or raised. Raises LeftBehindError where what the attempt left is no result."""
    content = folder.read(RESULT_FILE, RESULT_BYTES)
    if content is None:
        how = f"the agent's process ended with {exit_text(ended.code)} before the callable returned"
        return _Returned(error=_with_stderr(how, ended))
    try:
        found = json.loads(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise LeftBehindError(f"what the attempt left as {RESULT_FILE} is no JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str | None) for name in ("note", "error")):
        raise LeftBehindError(f"what the attempt left as {RESULT_FILE} is no result")
    output, note, problem = (found.get(name) for name in ("output", "note", "error"))
    if not isinstance(output, str) or len(output) > OUTPUT_LIMIT:  # child.py has made a text of what was too long
        output, other = jsonable(output)
        note = other or note
    return _Returned(output, note and note[:_NOTE_CHARS], problem and problem[:_ERROR_CHARS])


def exit_text(code: int) -> str:
    """Return how a process ended, by its exit code (negative: the signal)."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _with_stderr(problem: str, ended: Ended) -> str:
    end = ended.stderr.end().decode("utf-8", "replace").strip()[-_STDERR_CHARS:]
    return f"{problem}; the end of stderr:\n{end}" if end else problem
