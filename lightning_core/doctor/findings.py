"""From what a trial left behind to what an agent lacks, each with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    """What is there and what is missing, in the order of a call's way: agent, calls, ids, spans, names, twins, rewards."""
    seen, settings = facts(trial), trial.epoch.settings
    found: list[Finding] = []
    for judge in (
        *(_outcome(trial), _calls(trial), _refused, _unknown_model(settings), _elsewhere, _ids),
        *(_spans, _claims, _names, _attributes, _twins, _tools),
    ):
        found += judge(seen)
    return found + _matched(seen, settings.policies) + _rewards(seen, settings.reward.grader)


def _outcome(trial: Trial) -> Callable[[Facts], list[Finding]]:
    def judge(_: Facts) -> list[Finding]:
        found = []
        for name, result in trial.results.items():
            if result.status != "ok":
                remedy = "what it printed is above; an attempt that fails gets reward.failure_reward"
                what = f"task {name}: {result.status}: {result.error}"
                found.append(Finding("missing", f"agent_{result.status}", what, remedy))
        return found or [Finding("fine", "ran", "the agent ran to its end")]

    return judge


def _calls(trial: Trial) -> Callable[[Facts], list[Finding]]:
    def judge(seen: Facts) -> list[Finding]:
        if seen["calls"]:
            return [Finding("fine", "calls", f"{seen['calls']} calls came through the gateway")]
        if seen["refused"]:
            return []
        ended_well = all(result.status == "ok" for result in trial.results.values())
        agent = trial.epoch.settings.agent
        if agent.command and ended_well and not trial.printed:
            what = "the program ended with 0, printed nothing and called no model"
            return [Finding("fatal", "ran_nothing", what, silent.remedy(agent))]
        remedy = (
            "the agent must take its model's address from OPENAI_BASE_URL and its key from OPENAI_API_KEY, as OpenAI's client "
            "does where it is given none; look for a base_url, an api_key or a provider written into the agent"
        )
        if not ended_well:
            remedy = f"mend what it failed of, above; where that is an address or a key: {remedy}"
        return [Finding("fatal", "no_calls", "the gateway saw no call", remedy)]

    return judge


def _refused(seen: Facts) -> list[Finding]:
    return [
        Finding(
            "missing" if seen["calls"] else "fatal",
            "refused",
            f"refused: {refusal}",
            "where it is a model that is not trained (a judge, an embedder), name it in gateway.upstreams",
        )
        for refusal in seen["refused"] or []
    ]


def _unknown_model(settings: Settings) -> Callable[[Facts], list[Finding]]:
    """Names that a policy has answered here for want of an owner: in training they are refused."""

    def judge(seen: Facts) -> list[Finding]:
        policies = {policy.name for policy in settings.policies}
        asked = seen["asked_for"] or []
        unknown = [name for name in asked if name not in settings.aliases and name.partition("@")[0] not in policies]
        if not unknown or ANY_NAME in settings.aliases:
            return []
        named = ", ".join(map(repr, unknown))
        line = f"aliases: {json.dumps(unknown, ensure_ascii=False)}"
        return [
            Finding(
                "fatal" if unknown == asked else "missing",
                "unknown_model",
                f"the agent asks for {named}, which nobody has: policy {settings.policies[0].name!r} answered in this trial, in "
                "training such calls are refused",
                f"they train the policy that has, under `policies:` in the settings, the line\n    {line}\n"
                "or let the agent read LIGHTNING_MODEL; a model that is not to be trained (a judge) goes under "
                "gateway.upstreams",
            )
        ]

    return judge


def _elsewhere(seen: Facts) -> list[Finding]:
    if not seen["elsewhere"]:
        return []
    return [
        Finding(
            "missing",
            "elsewhere",
            f"{seen['elsewhere']} calls were seen by the agent's instrumentation alone: they went to another model, failed on "
            "their way, or cannot be matched to the gateway's record",
            "if they shall be trained, send them through OPENAI_BASE_URL; else nothing is to be done: they are not trained on",
        )
    ]


def _ids(seen: Facts) -> list[Finding]:
    if not seen["calls"]:
        return []
    if seen["other_models"] == seen["calls"]:
        what = "every call went to a frozen model or one of gateway.upstreams; these are not trained"
        return [Finding("fatal", "other_models", what, "give a policy the name that the agent asks for, or that alias")]
    ours = seen["calls"] - seen["other_models"]
    bad = min(seen["untrainable"], ours)
    if not bad:
        return [Finding("fine", "ids", f"every call to a policy ({ours}) has its token ids and logprobs")]
    reasons = ", ".join(seen["untrainable_reasons"])
    return [
        Finding(
            "fatal" if bad == ours else "missing",
            "ids_missing" if seen["without_ids"] else "untrainable",
            f"{bad} of {ours} calls cannot be trained on: {reasons}",
            _REMEDIES.get(seen["untrainable_reasons"][0], "docs/gateway.md explains each reason"),
        )
    ]


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


def _spans(seen: Facts) -> list[Finding]:
    if seen["spans"]:
        return [Finding("fine", "spans", f"{seen['spans']} spans came from the agent")]
    if not seen["calls"]:
        return []
    return [
        Finding(
            "missing",
            "no_spans",
            "calls, but no spans from the agent: it trains, but nobody knows its agents and tools",
            "one agent, one policy: leave it so, with agent_match empty. Else set up its framework's OpenTelemetry "
            "instrumentation with an OTLPSpanExporter() without arguments (docs/frameworks.md), and let the process end "
            "in its own time: a provider that is never shut down or flushed sends nothing",
        )
    ]


def _claims(seen: Facts) -> list[Finding]:
    """Spans that say what only others may: the gateway, the runner, a grader, or an attempt that proves who it is."""
    if not seen["claims"]:
        return []
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
    return [Finding("missing", "refused_claims", what, remedy)]


def _names(seen: Facts) -> list[Finding]:
    if not seen["spans"]:
        return []
    if not seen["agents"]:
        return [
            Finding(
                "missing",
                "no_names",
                "spans, but no agent has a name: agent_match has nothing to choose by",
                "name agents where the framework has a place for it (name=…, role=…), or set gen_ai.agent.name on a span "
                "around their calls, or say in agent_rules where their names stand; with one agent leave agent_match empty",
            )
        ]
    found = [Finding("fine", "names", f"agents: {', '.join(seen['agents'])}")]
    if seen["nameless"]:
        found.append(
            Finding(
                "missing",
                "nameless_calls",
                f"{seen['nameless']} calls are nobody's: no named agent is above them",
                "an instrumentation whose spans enclose the calls, and that hands its context to the threads they run in",
            )
        )
    if seen["ambiguous"]:
        found.append(
            Finding(
                "missing",
                "ambiguous",
                f"{seen['ambiguous']} calls could be several agents' that ran at the same time; they are left out",
                "instrument the LLM client too, so that a call's span lies in its agent's; or policies[].ambiguous: train, "
                "where every one of these agents is trained",
            )
        )
    return found


def _attributes(seen: Facts) -> list[Finding]:
    if not seen["cut_spans"]:
        return []
    return [
        Finding(
            "missing",
            "attribute_limit",
            f"{seen['cut_spans']} spans lost {seen['dropped_attributes']} attributes to a limit of the agent's SDK, the oldest "
            "first: names of agents are among those",
            "the runner sets OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT to 4096; take out SpanLimits(…) of the agent, or set a higher "
            "limit in agent.environment",
        )
    ]


def _twins(seen: Facts) -> list[Finding]:
    if not seen["twins"]:
        return []
    return [
        Finding(
            "fine", "twins", f"{seen['twins']} further records of the same calls were merged; each call counts once"
        )
    ]


def _tools(seen: Facts) -> list[Finding]:
    if not seen["tools"]:
        return []
    return [Finding("fine", "tools", f"{seen['tools']} tool calls, {seen['failed_tools']} of them failed")]


def _matched(seen: Facts, policies: list[PolicySettings]) -> list[Finding]:
    trainable = seen["calls"] - seen["other_models"] - seen["untrainable"]
    if trainable <= 0:
        return []
    if seen["matched"]:
        return [Finding("fine", "matched", f"{seen['matched']} calls would be trained on")]
    patterns = ", ".join(f"{p.name}: {p.agent_match!r}" for p in policies)
    return [
        Finding(
            "fatal",
            "nothing_matched",
            f"no call would be trained on ({', '.join(seen['left_out'] or ['no reason given'])}); agent_match is {patterns}",
            f"agent_match must take one of the agents seen: {', '.join(seen['agents'] or ['none has a name, so leave it empty'])}",
        )
    ]


def _rewards(seen: Facts, grader: str | None) -> list[Finding]:
    if seen["reward_error"]:
        return [Finding("fatal", "bad_reward", f"the grader: {seen['reward_error']}", "correct reward.grader")]
    if seen["rewards"]:
        return [Finding("fine", "rewards", f"{seen['rewards']} rewards")]
    if grader is None:
        return [
            Finding(
                "missing",
                "no_reward",
                "the agent gave no reward",
                "give reward.grader in the settings, or let the agent call emit_reward (docs/agents.md)",
            )
        ]
    return [
        Finding("fatal", "no_reward", "reward.grader gave no reward", "it runs on attempts that end well: see above")
    ]
