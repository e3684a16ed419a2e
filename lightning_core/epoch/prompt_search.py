"""Search for better prompts with GEPA (Agrawal et al., 2025, arXiv:2507.19457): candidates are tried in rollouts of the lake.

Each batch of rollouts is an evaluation, in the order of the search, of a run of its own: `<run>-prompts-<digest of what the search reads>`.
GEPA draws by the run's seed, and the answers of the reflecting model are kept in the home (`prompts/.reflections`), so a search that
was interrupted goes the same way again: batches that are finished are read, not rolled out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gepa
import httpx
from gepa.core.adapter import EvaluationBatch, GEPAAdapter
from gepa.core.result import GEPAResult

from lightning_core.config import SettingsError
from lightning_core.config.prompt_search import PromptSearchSettings
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.gain import Gain, gained
from lightning_core.epoch.plan import PlannedRollout, plan_batch
from lightning_core.epoch.prompts import current_prompts
from lightning_core.epoch.report import asked
from lightning_core.epoch.services import Say
from lightning_core.epoch.task_file import Task
from lightning_core.errors import LightningError
from lightning_core.files import write_atomic
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake import catalog, sql
from lightning_core.lake.conversation import Message, messages_of
from lightning_core.lake.manifest import stage_key
from lightning_core.prompts.served import PromptSet
from lightning_core.prompts.store import PromptStore

log = logging.getLogger(__name__)

Row = dict[str, Any]
RollOut = Callable[[Epoch, list[PlannedRollout]], None]  # runs an evaluation's rollouts, and derives its tables
_REFLECTION_S, _REFLECTION_TOKENS = 1_200.0, 2_048  # of an answer of the reflecting model
_MOST_TEXT = 4_000  # characters of a conversation that the reflecting model reads


class ReflectionError(LightningError):
    """The reflecting model gave no answer; the message says why."""


@dataclass(frozen=True)
class Champion:
    """What a search found: prompt → version, and by how much it is better than the versions in use on the held-out tasks."""

    run: str  # that has its rollouts
    before: dict[str, str]  # the versions that were in use
    versions: dict[str, str]
    rollouts: int  # of training tasks
    candidates: int  # versions that were compared, that in use among them
    gain: Gain | None  # in reward; None where no candidate was better on the training tasks

    @property
    def is_better(self) -> bool:
        """Return whether the gain is more than chance: its 95% interval lies above 0."""
        return self.gain is not None and self.gain.low is not None and self.gain.low > 0


def search_of(run: Run, roll_out: RollOut, say: Say, epoch: Epoch | None = None) -> Search:
    """Begin the search of a run's settings, or go on with it. Raises SettingsError where something is missing.

    epoch: of `train`, before which it is made. Its manifest has the versions that the search began with, until it has those that were
    found: so an interrupted search goes on, whatever it has put in use by then.
    """
    settings, search = run.settings, run.settings.prompt_search
    if search is None or not settings.prompts:
        missing = "prompts" if not settings.prompts else "prompt_search"
        raise SettingsError(f"{missing}: nothing is set; docs/prompts.md says what a search for prompts needs")
    if settings.tasks.evaluate is None:
        raise SettingsError(
            "tasks.evaluate: a search for prompts needs held-out tasks, which say whether one is better"
        )
    # With a larger budget a search goes on.
    how = search.model_dump(exclude={"rollouts", "train_every", "train_offset"})
    before, policies_at = current_prompts(settings), run.versions(run.next_epoch())
    if epoch is not None:
        if epoch.manifest.prompt_versions.keys() != before.keys():
            epoch.manifest.prompt_versions = before
            epoch.save()
        before, policies_at = epoch.manifest.prompt_versions, epoch.manifest.versions
    run.require_versions(policies_at, f"the search for prompts of run {run.run}")
    of_epoch = [] if epoch is None else [epoch.number]
    label = stage_key(before, how, settings.tasks, settings.seed, policies_at, *of_epoch)[:8]
    own = Run(settings.model_copy(update={"run": f"{run.run[:45]}-prompts-{label}"}))
    return Search(own, search, before, policies_at, roll_out, say)


class Search(GEPAAdapter[Task, Row, Row]):
    """GEPA's adapter: a batch of tasks with a candidate (prompt → text) is rolled out, rewarded, and read from the lake."""

    propose_new_texts = None  # GEPA's own: the reflecting model is asked for one prompt at a time

    def __init__(
        self,
        own: Run,
        search: PromptSearchSettings,
        before: dict[str, str],
        policies_at: dict[str, str],
        roll_out: RollOut,
        say: Say,
    ) -> None:
        """Prepare a search. own: the run of the search. before: prompt → version in use. policies_at: policy → version
        that samples."""
        self.own, self.search, self.before, self.policies_at = own, search, before, policies_at
        self.roll_out, self.say = roll_out, say
        self.stores = {name: PromptStore(own.home, name) for name in own.settings.prompts}
        self.batches = self.rollouts = 0
        self._parent: dict[str, str] = {}  # the candidate that the next new texts are made from

    def evaluate(
        self, batch: list[Task], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Row, Row]:
        """Try the candidate on tasks, a rollout each; return rewards, and what happened (rows of
        sql/prompts/tried.sql)."""
        versions = self.versions(candidate)
        rows = self.tried(self.try_on(batch, versions, 1))
        self.rollouts += len(batch)
        scores = [float(row.get("reward") or 0.0) for row in rows]
        self.say(
            f"batch {self.batches - 1}: {in_words(versions)} on {len(batch)} tasks: mean reward {sum(scores) / len(scores):.3f}; "
            f"{self.rollouts} of {self.search.rollouts} rollouts"
        )
        return EvaluationBatch(outputs=rows, scores=scores, trajectories=rows if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], tried: EvaluationBatch[Row, Row], components_to_update: list[str]
    ) -> dict[str, list[Row]]:
        """Return what the reflecting model reads of each rollout, for each prompt the calls of its agents alone."""
        self._parent = dict(candidate)
        return {name: [_record(row, name) for row in tried.outputs] for name in components_to_update}

    def try_on(self, tasks: Sequence[Task], versions: Mapping[str, str], rollouts_per_task: int) -> Epoch:
        """Roll out tasks with versions of the prompts (prompt → version), as the next batch."""
        epoch = self.own.open(self.batches, "evaluate", self.policies_at)
        epoch.manifest.of_search = True
        self.batches += 1
        prompts = PromptSet.of(self.own.home, self.own.settings.prompts, versions)
        planned = plan_batch(self.own, list(tasks), epoch.number, rollouts_per_task)
        self.roll_out(epoch, [replace(rollout, prompts=prompts) for rollout in planned])
        return epoch

    def tried(self, epoch: Epoch) -> list[Row]:
        """Return a row of sql/prompts/tried.sql for each rollout of a batch, in its order; `{}` for one without a result."""
        patterns = {name: prompt.agent_match or "" for name, prompt in self.own.settings.prompts.items()}
        names = {"prompts": list(patterns), "patterns": list(patterns.values())}
        rows = asked(self.own.lake, sql.text("prompts/tried"), run=epoch.run, epoch=epoch.number, **names)
        found = {row["rollout_id"]: row for row in rows}
        return [found.get(rollout_id, {}) for rollout_id in epoch.manifest.planned]

    def versions(self, candidate: Mapping[str, str]) -> dict[str, str]:
        """Return prompt → version of a candidate's texts; a new text becomes a version, with the one it was made from as its parent."""
        return {name: self._version(name, text) for name, text in candidate.items()}

    def _version(self, name: str, text: str) -> str:
        store = self.stores[name]
        known = {store.version(version).text: version for version in reversed(store.versions())}
        if text not in known:
            known[text] = store.add(text, f"search {self.own.run}", known.get(self._parent.get(name, "")))
        return known[text]


def find_champion(at: Search, tasks: list[Task], held_out: list[Task], reflect: Callable[[str], str]) -> Champion:
    """Search within the budget, and try the best candidate and the prompts in use on the held-out tasks.

    tasks: training tasks, of which the first `compare` compare candidates; the others are what they are made from.
    """
    own, search = at.own, at.search
    search.require_enough(len(tasks))
    before = at.before
    seed = {name: at.stores[name].version(version).text for name, version in before.items()}
    found: GEPAResult[Row, int] = gepa.optimize(
        seed_candidate=seed,
        trainset=tasks[search.compare :],
        valset=tasks[: search.compare],
        adapter=at,
        reflection_lm=lambda prompt: reflect(prompt if isinstance(prompt, str) else json.dumps(prompt)),
        reflection_minibatch_size=search.tries,
        max_metric_calls=search.rollouts,
        logger=_Logger(),
        seed=own.settings.seed,
    )
    best = found.best_candidate
    versions = at.versions(best if isinstance(best, dict) else {})
    gain = None
    if versions != before:
        per_task, limit = own.settings.evaluation.rollouts_per_task, own.settings.evaluation.limit
        since, epoch = (at.try_on(held_out[:limit], tried, per_task) for tried in (before, versions))
        gain = _gain(own, since.number, epoch.number)
    return Champion(own.run, before, versions, at.rollouts, len(found.candidates), gain)


def put_in_use(at: Search, found: Champion) -> bool:
    """Make the versions of a champion that is better `best`, and `current` where none is pinned; return whether all are in use now."""
    if found.is_better:
        for name, version in found.versions.items():
            at.stores[name].put("best", version)
            if at.stores[name].marked("pinned") is None:
                at.stores[name].put("current", version)
    return found.is_better and all(at.stores[name].marked("current") == v for name, v in found.versions.items())


def reflecting(gateway: GatewayHandle, at: Search) -> Callable[[str], str]:
    """Return the function that asks the reflecting model through the gateway; an answer is kept, and given again to the same question."""
    own, search = at.own, at.search
    kept = own.home / "prompts" / ".reflections"

    def reflect(question: str) -> str:
        question_id = hashlib.sha256(json.dumps([own.run, search.reflection_model, question]).encode()).hexdigest()[:16]
        file = kept / f"{question_id}.txt"
        if file.is_file():
            return file.read_text()
        began, rollout_id = time.monotonic(), f"{own.run}.reflect.{question_id}"
        body = {
            "model": search.reflection_model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": _REFLECTION_TOKENS,
        }
        url = f"{gateway.attempt_url(rollout_id, question_id)}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {gateway.mint(rollout_id, question_id, 'evaluate')}"}
        try:
            answer = httpx.post(url, json=body, headers=headers, timeout=_REFLECTION_S)
            answer.raise_for_status()
            text = str(answer.json()["choices"][0]["message"]["content"] or "")
        except httpx.HTTPStatusError as error:
            raise ReflectionError(f"{search.reflection_model} gave no answer: {error.response.text[:300]}") from None
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise ReflectionError(f"{search.reflection_model} gave no answer: {error!r:.300}") from None
        at.say(f"{search.reflection_model} reflected on {len(question)} characters in {time.monotonic() - began:.0f} s")
        write_atomic(file, text.encode())
        return text

    return reflect


def in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _gain(own: Run, since: int, epoch: int) -> Gain:
    own.lake.rebuild_catalog()
    with catalog.connect(own.lake.root) as con:
        gain = gained(con, own.run, since, epoch)
    if gain is None:
        raise LightningError(
            f"run {own.run}: no held-out task has a reward with both prompts, so nothing says which is better"
        )
    return gain


def _record(row: Row, prompt: str) -> Row:
    """Return what the reflecting model reads of a rollout: the prompt itself, which it has beside, is left out."""
    if not row:
        return {"Task": "?", "Feedback": "the rollout has no result, for reasons of the infrastructure"}
    lines = []
    for call in row["said"]:
        if prompt in call["prompts"]:
            who = call["path"] or call["agent"] or "agent"
            said = [message for message in messages_of(call["asked"]) if message.role not in ("system", "developer")]
            lines.append(f"[{who}] " + "\n".join(map(_line, [*said, *messages_of(call["answered"])])))
            if call["error"]:
                lines.append(f"[{who}] error: {call['error']}")
    feedback = f"reward {row['reward']}" + {True: ", right", False: ", wrong"}.get(row["success"], "")
    return {
        "Task": row["task"] or row["task_text"] or "?",
        "Conversation": "\n".join(lines)[-_MOST_TEXT:] or "none of its agents called a model",
        "Output": row["output"] or row["error"] or "none",
        "Feedback": feedback + (f" ({row['rewards']})" if row["rewards"] else ""),
    }


def _line(message: Message) -> str:
    tools = "".join(f" {name}({arguments})" for name, arguments in message.tool_calls)
    return f"{message.role}: {message.text}{tools}"


class _Logger:
    """GEPA's log, into ours."""

    def log(self, message: str) -> None:
        log.debug("gepa: %s", message)
