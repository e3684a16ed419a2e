"""What attempts are forked from and what a fork does: run the callable, or turn into the command. It never returns.

The order matters to agents: environment, session, working directory and streams are in place before the agent's module
is imported, as they would be for a process started by hand. Runs in the agent's own Python: the standard library alone.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, NoReturn

from lightning_core.agents import lit_agent
from lightning_core.agents.agent_file import AgentFile
from lightning_core.agents.attempt import jsonable
from lightning_core.process.fork_server import Prepared, RefusedError
from lightning_core.user_code import describe

RESULT_FILE = "result.json"
RESULT_BYTES = 8_000_000  # more than an output of attempt.OUTPUT_LIMIT characters and an error have
TASK_FILE = "task.json"
PROMPTS_FILE = "prompts.json"
_ERROR_LIMIT = 4000
_FLUSH_MS = 10_000
_ENDED_FIRST = 500  # of 1,000
_FOR_CONNECTIONS = "encodings.idna"  # the first connection to anywhere imports it: a tenth of a small attempt


def prepare(init: dict[str, Any]) -> Prepared:
    """Import what attempts share, in the fork server; of the agent's own file they share its code and nothing it made.

    Raises RefusedError where a module of `agent.preload` cannot be imported.
    """
    directory, target, argv = init["directory"], init["target"] or "", init["argv"]
    os.chdir(directory)
    problem = preload([_FOR_CONNECTIONS, *init["preload"]], init["preload_optional"])
    if problem is not None:
        raise RefusedError(problem)
    path = target.rpartition(":")[0]
    file = AgentFile(path) if path.endswith(".py") else None

    def begin(request: dict[str, Any]) -> Callable[[], object]:
        code = file.code() if file is not None else None

        def run() -> None:
            limit(init["limits"])
            os.chdir(directory)
            if request["kind"] == "command":
                run_command(argv)
            run_callable(target, code, request["folder"])

        return run

    return begin


def limit(limits: Mapping[str, int]) -> None:
    """Set the most that this process may have, and each that it starts; it can only lower that."""
    for name, most in limits.items():
        number = getattr(resource, name)
        now = [most if value == resource.RLIM_INFINITY else min(value, most) for value in resource.getrlimit(number)]
        resource.setrlimit(number, (now[0], now[1]))
    # Where the machine runs out of memory, Linux ends an attempt, and neither vLLM nor the flow.
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/oom_score_adj", os.O_RDWR)  # `open` would import the codec: 2 ms of an attempt
        if int(os.read(file, 16)) < _ENDED_FIRST:
            os.write(file, b"%d" % _ENDED_FIRST)
        os.close(file)


def preload(modules: list[str], optional: bool) -> str | None:
    """Import modules for all attempts to share; return what went wrong, if anything.

    Optional ones (the settings' own defaults) may fail: an agent that needs one will say so itself.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001 - a module may do anything at import
            if not optional:
                return f"{module}: {type(error).__name__}: {error}"
            if not isinstance(error, ModuleNotFoundError):
                traceback.print_exc()  # into the server's log
    return None


def run_command(argv: list[str]) -> NoReturn:
    """Replace this process by the command; exit with 127 where it cannot be started, as a shell would."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs expect the default
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"agent.command: {argv[0]} cannot be started: {error}\n".encode())
    os._exit(127)


def run_callable(target: str, code: CodeType | None, folder: str) -> NoReturn:
    """Import the agent (`load`), call it with the task, write what it returned, end as a Python program ends."""
    exit_code = 1
    try:
        result = _call(target, code, folder)
        exit_code = result.pop("code")
        write_result(folder, result)
        _finish()
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)


def load(target: str, code: CodeType | None = None) -> Callable[[Any], Any]:
    """Return the function of `module:function` or `path/to/file.py:function`; its folder comes first on the import
    path.

    `code`: of the file, where it is compiled already. What an attempt shares with others is that, not the module.
    Raises what the import raises, or LookupError / TypeError with what is wrong.
    """
    where, _, name = target.rpartition(":")
    if where.endswith(".py"):
        module = _load_file(where, code)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(where)
    here: Any = module
    for part in name.split("."):
        if not hasattr(here, part):
            raise LookupError(f"{where} has no {name!r}")
        here = getattr(here, part)
    if not callable(here) and not lit_agent.is_one(here):
        raise TypeError(f"{name!r} of {where} is a {type(here).__name__} and cannot be called")
    return here


def write_result(folder: str, result: Mapping[str, Any]) -> None:
    """Write the result whole or not at all: a reader never sees half of it."""
    path = f"{folder}/{RESULT_FILE}"
    with open(path + ".part", "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(json.dumps(result, ensure_ascii=False))
    os.rename(path + ".part", path)


class _Loader(SourceFileLoader):
    """Python's own, with the code at hand."""

    def __init__(self, name: str, path: str, code: CodeType | None) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType | None:
        return self._code or super().get_code(fullname)


def _load_file(path: str, code: CodeType | None) -> ModuleType:
    folder, _, file = path.rpartition("/")
    sys.path.insert(0, folder)
    name = file.removesuffix(".py")
    if name in sys.modules:
        name = f"agent_{name}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, path, code))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _call(target: str, code: CodeType | None, folder: str) -> dict[str, Any]:
    try:
        function = load(target, code)
        with open(f"{folder}/{TASK_FILE}", encoding="utf-8") as file:
            task = json.loads(file.read())
        value = lit_agent.run(function, task) if lit_agent.is_one(function) else function(task)
        if inspect.isawaitable(value):
            value = asyncio.run(_await(value))
    except SystemExit as error:
        return _exited(error.code)
    except BaseException as error:  # noqa: BLE001 - the agent's failure, whatever it is
        traceback.print_exc()
        return {"code": 1, "error": describe(error)}
    output, note = jsonable(value)
    return {"code": 0, "output": output, "note": note}


async def _await(value: Any) -> Any:
    return await value


def _exited(code: Any) -> dict[str, Any]:
    if code in (None, 0):
        return {"code": 0, "output": None, "note": "the agent called sys.exit() and returned nothing"}
    if not isinstance(code, int):
        print(code, file=sys.stderr)  # noqa: T201 - what Python does with sys.exit("message")
        return {"code": 1, "error": f"the agent called sys.exit({code!r:.{_ERROR_LIMIT}})"}
    return {"code": code & 0xFF or 1, "error": f"the agent called sys.exit({code})"}


def _finish() -> None:
    """Wait for the agent's threads, run its exit handlers, send its last spans."""
    # What multiprocessing does at the end of a forked process; there is no public name for it.
    threading._shutdown()  # type: ignore[attr-defined]
    _flush_spans()
    atexit._run_exitfuncs()


def _flush_spans() -> None:
    """Send the spans that an agent's OpenTelemetry provider still holds; one that nobody set up has none to send."""
    trace = sys.modules.get("opentelemetry.trace")
    provider: Any = getattr(trace, "_TRACER_PROVIDER", None)
    if hasattr(provider, "force_flush"):
        try:
            provider.force_flush(_FLUSH_MS)
        except Exception:  # noqa: BLE001 - an exporter's fault must not undo the agent's result
            traceback.print_exc()
