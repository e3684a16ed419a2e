"""What vLLM's log says: how far its start has come, and why it ended early."""

from __future__ import annotations

import re
from pathlib import Path

# A phase begins with the first line that matches; vLLM 0.32 writes them in this order.
PHASES = (
    ("importing", ""),
    ("reading the model's config", r"non-default args"),
    ("starting the engine", r"Initializing a V1 LLM engine"),
    ("loading weights", r"Starting to load model"),
    ("allocating the KV cache", r"KV cache layout|for KV cache on node|GPU KV cache size"),
    ("opening the socket", r"init engine \(profile"),
)

# (what the log says, what it means, the remedy); the first that matches anywhere in the log explains the exit.
CAUSES = (
    (
        r"larger than the (maximum number of tokens|available KV cache memory)|KV cache is needed, which is larger",
        "the KV cache holds less than one call of full length",
        "raise `vllm.kv_cache_gb` or lower `vllm.max_model_len`",
    ),
    (
        r"Available memory on node|No available memory for the cache blocks|MemoryError|Cannot allocate memory|out of memory|DefaultCPUAllocator",
        "it ran out of memory",
        "lower `vllm.kv_cache_gb` or `vllm.max_num_seqs`, take a smaller model, or free memory on the machine",
    ),
    (
        r"max_model_len .*is greater than the derived",
        "`vllm.max_model_len` is longer than the model allows",
        "lower `vllm.max_model_len`",
    ),
    (
        r"unrecognized arguments?:|error: argument ",
        "it does not know one of its arguments",
        "correct `vllm.extra_args`",
    ),
    (
        r"not supported for now|does not recognize this architecture|Cannot find model module|SafetensorError|HeaderTooLarge",
        "it cannot load this model",
        "choose another `policies[].model`, or fetch its folder again",
    ),
    (
        r"Address already in use|AF_UNIX path too long",
        "its socket cannot be opened",
        "set TMPDIR to a short path that is free to write",
    ),
    (r"No module named", "a package is missing", "install the `[cpu]` or `[gpu]` extra of lightning-flows"),
)


def phase(text: str) -> str:
    """Return the last phase that the log `text` has reached."""
    reached = PHASES[0][0]
    for name, pattern in PHASES:
        if pattern and re.search(pattern, text):
            reached = name
    return reached


def explain_exit(text: str, code: int | None, log_file: Path) -> str:
    """Explain why vLLM ended: cause, the line that says so, remedy, and where the log is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ended = f"killed by signal {-code}" if code is not None and code < 0 else f"exit {code}"
    for pattern, meaning, remedy in CAUSES:
        line = next((line for line in lines if re.search(pattern, line)), None)
        if line is not None:
            return (
                f"vLLM ended while starting ({ended}): {meaning}; {remedy}. It printed: {_clip(line)} (log: {log_file})"
            )
    if code == -9:
        return f"vLLM was killed while starting ({ended}), most likely because memory ran out; lower `vllm.kv_cache_gb` (log: {log_file})"
    errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b:", line)]
    printed = errors[-1] if errors else (lines[-1] if lines else "nothing")
    return f"vLLM ended while starting ({ended}) and printed: {_clip(printed)}. The log has more: {log_file}"


def _clip(line: str) -> str:
    return line if len(line) <= 400 else line[:400] + "…"
