"""One rollout asked of both: our SQL, and Agent Lightning's adapter."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lake_maker import SECOND, Attempt, derived, table

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-oracle" / "bin" / "python"
READY = HERE.parents[1] / ".venv-oracle" / "ready"
RECORDS = HERE.parent / "data" / "oracle"


@dataclass
class Case:
    """`assign` and `gamma` are our setting, `reward_match` is the oracle's own; `agent_match` goes to both.

    Spans reach the oracle in the order of `attempt.rows`. `lake` are the rows that reach our SQL, where the decoder
    would make others of them.
    """

    attempt: Attempt
    agent_match: str = ""
    assign: str = "final"
    reward_match: str = "first_occurrence"
    lake: list[dict[str, Any]] | None = None

    @property
    def rollout_id(self) -> str:
        return str(self.attempt.rows[0]["rollout_id"])

    def request(self) -> dict[str, Any]:
        """The case as `run_adapter.py` reads it."""
        return {
            "spans": [_span(number, row) for number, row in enumerate(self.attempt.rows)],
            "agent_match": self.agent_match or None,
            "reward_match": self.reward_match,
        }

    def digest(self) -> str:
        """Names the question, so that a recorded answer to another one is noticed."""
        return hashlib.blake2b(json.dumps(self.request()).encode(), digest_size=8).hexdigest()


def ask_oracle(cases: list[Case]) -> list[dict[str, Any]]:
    """The adapter's answers, one a case; one process for all, since its imports take seconds."""
    done = subprocess.run(
        [PYTHON, HERE / "run_adapter.py"],
        input=json.dumps([case.request() for case in cases]),
        capture_output=True,
        text=True,
        timeout=300,
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the network at import
    )
    if done.returncode:
        raise RuntimeError(f"run_adapter.py failed: {done.stderr[-2000:]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def ask_sql(home: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Our answers in the oracle's form, one a case, with `left_out`: reason by the response's token ids, as text."""
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, case in enumerate(cases):
        alike[case.agent_match, case.assign].append(place)
    answers: list[dict[str, Any]] = [{} for _ in cases]
    for number, ((agent_match, assign), places) in enumerate(alike.items()):
        for place in places:
            answers[place] = {"triplets": [], "left_out": {}}
        by_rollout = {cases[place].rollout_id: answers[place] for place in places}
        rows = [row for place in places for row in cases[place].lake or cases[place].attempt.rows]
        lake, epoch = derived(home / str(number), rows, agent_match=agent_match, assign=assign)
        spans = {(row["rollout_id"], row["span_id"]): row for row in rows}
        rewards = {row["call_id"]: row["return"] for row in table(lake, epoch, "call_returns")}
        for call in table(lake, epoch, "policy_calls"):
            span, answer = spans[call["rollout_id"], call["span_id"]], by_rollout[call["rollout_id"]]
            if call["left_out"] is not None:
                answer["left_out"][str(span["response_ids"])] = call["left_out"]
                continue
            triplet = {
                "prompt": span["prompt_ids"],
                "response": span["response_ids"],
                "agent": call["agent"],
                "reward": rewards[call["call_id"]],
            }
            answer["triplets"].append(triplet)
    return answers


def _span(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the lake as Agent Lightning's tracer would have written it."""
    name, attributes = row["name"], dict(row["attributes"])
    if row["agent_name"] is not None:
        attributes["agent.name"] = row["agent_name"]
    if row["op"] == "llm":
        name = "openai.chat.completion"
        attributes |= {"prompt_token_ids": row["prompt_ids"], "response_token_ids": row["response_ids"]}
        if row["response_id"] is not None:
            attributes["gen_ai.response.id"] = row["response_id"]
    if row["op"] == "reward":
        name = "agentlightning.annotation"
        attributes |= {
            "agentlightning.reward.0.name": row["reward_name"],
            "agentlightning.reward.0.value": row["reward"],
        }
    return {
        "rollout_id": row["rollout_id"],
        "attempt_id": row["attempt_id"],
        "sequence_id": number,
        "trace_id": row["trace_id"],
        "span_id": row["span_id"],
        "parent_id": row["parent_span_id"],
        "name": name,
        "start_time": row["start_ns"] / SECOND,
        "end_time": None if row["end_ns"] is None else row["end_ns"] / SECOND,
        "attributes": attributes,
    }
