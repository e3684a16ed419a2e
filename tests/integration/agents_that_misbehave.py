"""Agents as users write them on bad days; each function is one of test_attempts_*.py's cases."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SEEN_AT_IMPORT = {name: os.environ.get(name) for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "LIGHTNING_ATTEMPT_ID")}
COUNTER = [0]


def fine(task):
    COUNTER[0] += 1
    return {"twice": task["n"] * 2, "calls_in_this_process": COUNTER[0]}


def what_connections_import(task):
    return "encodings.idna" in sys.modules


def environment_at_import(task):
    return SEEN_AT_IMPORT | {"task_file": json.loads(Path(os.environ["LIGHTNING_TASK"]).read_text())}


def whole_environment(task):
    return dict(os.environ)


def reads_stdin(task):
    return json.load(sys.stdin)


def raises(task):
    raise ValueError("no such number")


def hangs(task):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def exits_one(task):
    sys.exit(1)


def exits_zero(task):
    sys.exit(0)


def exits_with_words(task):
    sys.exit("out of ideas")


def exits_hard(task):
    os.write(2, b"last words\n")
    os._exit(3)


def exits_hard_with_zero(task):
    os._exit(0)


def kills_itself(task):
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(task):
    os.kill(os.getpid(), signal.SIGSEGV)


def changes_directory(task):
    os.chdir("/")
    return os.getcwd()


def own_event_loop(task):
    async def work():
        await asyncio.sleep(0)
        return "from a loop of its own"

    return asyncio.run(work())


async def asynchronous(task):
    await asyncio.sleep(0)
    return {"awaited": task["n"]}


def seeds_random(task):
    random.seed(42)
    from lightning_core.client import emit_reward

    emit_reward(1.0)
    return random.random()


def unseeded(task):
    return random.random()


def returns_an_object(task):
    return threading.Lock()


def returns_nan(task):
    return float("nan")


def returns_a_surrogate(task):
    return "half of a pair: \ud83d"


def prints_much(task):
    block = ("x" * 99 + "\n") * 10_000
    print("first line")
    for _ in range(100):
        sys.stdout.write(block)
    print("last line")
    return "printed"


def lasting_thread(task):
    def late():
        time.sleep(0.2)
        Path(task["file"]).write_text("done")

    threading.Thread(target=late).start()
    return "returned before its thread"


def leaves_children(task):
    """One in its group, one in a session of its own, one that forked twice and set its own session, without exec."""
    same = subprocess.Popen(["sleep", "600"])
    away = subprocess.Popen(["sleep", "600"], start_new_session=True)
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            time.sleep(600)
        os.write(write, str(daemon).encode())
        os._exit(0)
    Path(task["pids"]).write_text(json.dumps([same.pid, away.pid, int(os.read(read, 20))]))
    return "left"


def hangs_with_children(task):
    leaves_children(task)
    time.sleep(600)


def traces_and_leaves_the_rest_to_others(task):
    """Sets up a provider and never shuts it down."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    with trace.get_tracer("agent").start_as_current_span("work") as work:
        from lightning_core.client import emit_reward

        emit_reward(0.5)
        return format(work.get_span_context().span_id, "016x")


not_callable = 3
