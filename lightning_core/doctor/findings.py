"""From what a trial left behind to what an agent lacks, each with its remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lightning_core import names
from lightning_core.config import ANY_NAME, PolicySettings, Settings
from lightning_core.doctor import silent
from lightning_core.doctor.trial import Trial
from lightning_core.lake import catalog, sql

# `fatal`: training would have nothing to learn from. `missing`: it would learn, of less or from others than might be meant.
Level = Literal["fine", "missing", "fatal"]
Facts = dict[str, Any]  # columns of sql/doctor/facts.sql


@dataclass(frozen=True)
class Finding:
    level: Level
    name: str  # stable, for scripts: `no_calls`, `no_spans`, …
    what: str
    remedy: str = ""  # of one line, or with lines to copy


def facts(trial: Trial) -> Facts:
    with catalog.connect(trial.epoch.lake.root) as con:
        found = con.sql(sql.text("doctor/facts"), params={"run": trial.epoch.run}).to_arrow_table()
        return dict(found.to_pylist(maps_as_pydicts="strict")[0])


def findings(trial: Trial) -> list[Finding]:
    """Return what is there and what is missing, in the order of a call's way: agent, calls, ids, spans, names, twins,
    rewards."""
    seen, settings = facts(trial), trial.epoch.settings
    found = [*_outcome(trial), *_calls(trial, seen), *_refused(seen), *_unknown_model(seen, settings)]
    for judge in (_elsewhere, _ids, _spans, _claims, _names, _attributes, _twins, _tools):
        found += judge(seen)
    return [*found, *_matched(seen, settings.policies), *_rewards(seen, settings.reward.grader)]


def _fine(name: str, what: str) -> Finding:
    return Finding("fine", name, what)


def _missing(name: str, what: str, remedy: str, fatal: bool = False) -> Finding:
    return Finding("fatal" if fatal else "missing", name, what, remedy)


def _outcome(trial: Trial) -> Iterator[Finding]:
    failed = {name: result for name, result in trial.results.items() if result.status != "ok"}
    for name, result in failed.items():
        remedy = "what it printed is above; an attempt that fails gets reward.failure_reward"
        yield _missing(f"agent_{result.status}", f"task {name}: {result.status}: {result.error}", remedy)
    if not failed:
        yield _fine("ran", "the agent ran to its end")


def _calls(trial: Trial, seen: Facts) -> Iterator[Finding]:
    ended_well = all(result.status == "ok" for result in trial.results.values())
    agent = trial.epoch.settings.agent
    if seen["calls"]:
        yield _fine("calls", f"{seen['calls']} calls came through the gateway")
    elif seen["refused"]:
        return
    elif agent.command and ended_well and not trial.printed:
        what = "the program ended with 0, printed nothing and called no model"
        yield _missing("ran_nothing", what, silent.remedy(agent), fatal=True)
    else:
        remedy = (
            "the agent must take its model's address from OPENAI_BASE_URL and its key from OPENAI_API_KEY, as OpenAI's client "
            "does where it is given none; look for a base_url, an api_key or a provider written into the agent"
        )
        if not ended_well:
            remedy = f"mend what it failed of, above; where that is an address or a key: {remedy}"
        yield _missing("no_calls", "the gateway saw no call", remedy, fatal=True)


def _refused(seen: Facts) -> Iterator[Finding]:
    remedy = "where it is a model that is not trained (a judge, an embedder), name it in gateway.upstreams"
    for refusal in seen["refused"] or []:
        yield _missing("refused", f"refused: {refusal}", remedy, fatal=not seen["calls"])


def _unknown_model(seen: Facts, settings: Settings) -> Iterator[Finding]:
    """Report names that no policy has and the first policy answered to here: in training they are refused."""
    policies, asked = {policy.name for policy in settings.policies}, seen["asked_for"] or []
    unknown = [name for name in asked if name not in settings.aliases and name.partition("@")[0] not in policies]
    if unknown and ANY_NAME not in settings.aliases:
        yield _missing(
            "unknown_model",
            f"the agent asks for {', '.join(map(repr, unknown))}, which nobody has: policy {settings.policies[0].name!r} answered in "
            "this trial, in training such calls are refused",
            "they train the policy that has, under `policies:` in the settings, the line\n"
            f"    aliases: {json.dumps(unknown, ensure_ascii=False)}\n"
            "or let the agent read LIGHTNING_MODEL; a model that is not to be trained (a judge) goes under gateway.upstreams",
            fatal=unknown == asked,
        )


def _elsewhere(seen: Facts) -> Iterator[Finding]:
    if seen["elsewhere"]:
        yield _missing(
            "elsewhere",
            f"{seen['elsewhere']} calls were seen by the agent's instrumentation alone: they went to another model, failed on "
            "their way, or cannot be matched to the gateway's record",
            "if they shall be trained, send them through OPENAI_BASE_URL; else nothing is to be done: they are not trained on",
        )


def _ids(seen: Facts) -> Iterator[Finding]:
    ours = seen["calls"] - seen["other_models"]
    bad = min(seen["untrainable"], ours)
    if not seen["calls"]:
        return
    if not ours:
        what = "every call went to a frozen model or one of gateway.upstreams; these are not trained"
        yield _missing(
            "other_models", what, "give a policy the name that the agent asks for, or that alias", fatal=True
        )
    elif bad:
        reasons = seen["untrainable_reasons"]
        yield _missing(
            "ids_missing" if seen["without_ids"] else "untrainable",
            f"{bad} of {ours} calls cannot be trained on: {', '.join(reasons)}",
            _REMEDIES.get(reasons[0], "docs/gateway.md says what each reason means"),
            fatal=bad == ours,
        )
    else:
        yield _fine("ids", f"every call to a policy ({ours}) has its token ids and logprobs")


_REMEDIES = {
    "missing_ids": "the upstream must be vLLM 0.32 or newer, and nothing between it and the gateway may rewrite replies",
    "missing_logprobs": "the upstream must be vLLM 0.32 or newer, and nothing between it and the gateway may rewrite replies",
    "forced_tool": "the agent forces a tool (tool_choice other than auto), so the policy did not choose its tokens freely: "
    'leave it out where the agent allows (smolagents: OpenAIModel(…, tool_choice="auto")), or these calls stay untrained',
    "guided": "a schema or a grammar chose the tokens, not the policy: leave it out where the agent allows, or these calls stay "
    "untrained",
    "failed": "the call failed upstream; the gateway's log has the error",
    "aborted": "the agent left before the reply was complete (its client's timeout?)",
}


def _spans(seen: Facts) -> Iterator[Finding]:
    if seen["spans"]:
        yield _fine("spans", f"{seen['spans']} spans came from the agent")
    elif seen["calls"]:
        yield _missing(
            "no_spans",
            "calls, but no spans from the agent: it trains, but nobody knows its agents and tools",
            "one agent, one policy: leave it so, with agent_match empty. Else set up its framework's OpenTelemetry "
            "instrumentation with an OTLPSpanExporter() without arguments (docs/frameworks.md), and let the process end "
            "in its own time: a provider that is never shut down or flushed sends nothing",
        )


def _claims(seen: Facts) -> Iterator[Finding]:
    """Report spans that say what only others may: the gateway, the runner, a grader, or an attempt that proves who it
    is."""
    if not seen["claims"]:
        return
    remedy = (
        "calls of a policy are the gateway's to write, rollouts the runner's, a grader's rewards reward.grader's; an agent gives "
        "its own by emit_reward"
    )
    if names.ROLLOUT_ID in seen["claimed"]:
        remedy = (
            "an exporter of the agent names the rollout and sends no token: let it send the headers of OTEL_EXPORTER_OTLP_HEADERS, "
            "or pass on OTEL_RESOURCE_ATTRIBUTES as it is given, with the proof in it"
        )
    what = f"{seen['claims']} spans claim what their sender may not say, and that counts for nothing: {', '.join(seen['claimed'])}"
    yield _missing("refused_claims", what, remedy)


def _names(seen: Facts) -> Iterator[Finding]:
    if not seen["spans"]:
        return
    if not seen["agents"]:
        yield _missing(
            "no_names",
            "spans, but no agent has a name: agent_match has nothing to choose by",
            "name agents where the framework has a place for it (name=…, role=…), or set gen_ai.agent.name on a span "
            "around their calls, or say in agent_rules where their names stand; with one agent leave agent_match empty",
        )
        return
    yield _fine("names", f"agents: {', '.join(seen['agents'])}")
    if seen["nameless"]:
        yield _missing(
            "nameless_calls",
            f"{seen['nameless']} calls are nobody's: no named agent is above them",
            "an instrumentation whose spans enclose the calls, and that hands its context to the threads they run in",
        )
    if seen["ambiguous"]:
        yield _missing(
            "ambiguous",
            f"{seen['ambiguous']} calls could be several agents' that ran at the same time; they are left out",
            "instrument the LLM client too, so that a call's span lies in its agent's; or policies[].ambiguous: train, "
            "where every one of these agents is trained",
        )


def _attributes(seen: Facts) -> Iterator[Finding]:
    if seen["cut_spans"]:
        yield _missing(
            "attribute_limit",
            f"{seen['cut_spans']} spans lost {seen['dropped_attributes']} attributes to a limit of the agent's SDK, the oldest "
            "first: names of agents are among those",
            "the runner sets OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT to 4096; take out SpanLimits(…) of the agent, or set a higher "
            "limit in agent.environment",
        )


def _twins(seen: Facts) -> Iterator[Finding]:
    if seen["twins"]:
        yield _fine("twins", f"{seen['twins']} further records of the same calls were merged; each call counts once")


def _tools(seen: Facts) -> Iterator[Finding]:
    if seen["tools"]:
        yield _fine("tools", f"{seen['tools']} tool calls, {seen['failed_tools']} of them failed")


def _matched(seen: Facts, policies: list[PolicySettings]) -> Iterator[Finding]:
    if seen["calls"] - seen["other_models"] - seen["untrainable"] <= 0:
        return
    if seen["matched"]:
        yield _fine("matched", f"{seen['matched']} calls would be trained on")
        return
    patterns = ", ".join(f"{p.name}: {p.agent_match!r}" for p in policies)
    reasons, agents = seen["left_out"] or ["no reason given"], seen["agents"] or ["none has a name, so leave it empty"]
    yield _missing(
        "nothing_matched",
        f"no call would be trained on ({', '.join(reasons)}); agent_match is {patterns}",
        f"agent_match must take one of the agents seen: {', '.join(agents)}",
        fatal=True,
    )


def _rewards(seen: Facts, grader: str | None) -> Iterator[Finding]:
    if seen["reward_error"]:
        yield _missing("bad_reward", f"the grader: {seen['reward_error']}", "correct reward.grader", fatal=True)
    elif seen["rewards"]:
        yield _fine("rewards", f"{seen['rewards']} rewards")
    elif grader is None:
        remedy = "give reward.grader in the settings, or let the agent call emit_reward (docs/agents.md)"
        yield _missing("no_reward", "the agent gave no reward", remedy)
    else:
        remedy = "it runs on attempts that end well: see above"
        yield _missing("no_reward", "reward.grader gave no reward", remedy, fatal=True)
