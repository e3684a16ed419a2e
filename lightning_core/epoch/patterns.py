"""What an epoch takes from those before: `agent_match` that is computed (by a function of the agents of the run's last epoch, or
by SQL over the catalog), and the prompts that the run knows agents by.

It is settled once, when an epoch begins, and kept in the epoch's manifest: a resumed epoch selects what it selected
before. Left out: anything that is computed per rollout or per span; that is what the regex is for.
"""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow.parquet as pq

from lightning_core.config import PolicySettings, Settings, SettingsError
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import catalog, sql, user_sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import ComputedPattern, EpochManifest
from lightning_core.loading import load_callable

BY_SQL = "sql:"
COMPUTED = ("@", BY_SQL)


def settle(epoch: Epoch) -> None:
    """Enter the epoch's computed patterns, and the prompts that the run knows agents by, in its manifest and save it; those
    already there (patterns: for this setting) stay.

    None, NULL or no row match every agent, as an empty pattern does: before the first epoch nobody is known.
    Raises SettingsError, naming the policy, for a function or query that fails or whose result is no pattern.
    """
    manifest, patterns = epoch.manifest, epoch.manifest.patterns
    before, prompts = dict(patterns), manifest.prompts
    if prompts is None:
        manifest.prompts = known_prompts(epoch.lake, manifest)
    for policy in epoch.settings.policies:
        if not policy.agent_match.startswith(COMPUTED):
            patterns.pop(policy.name, None)
        elif policy.name not in before or before[policy.name].setting != policy.agent_match:
            pattern = _compute(epoch, policy)
            patterns[policy.name] = ComputedPattern(setting=policy.agent_match, pattern=pattern)
    if (patterns, manifest.prompts) != (before, prompts):
        epoch.save()


def pattern(epoch: EpochManifest, policy: PolicySettings) -> str:
    """Return the regex in force. Raises SettingsError where a computed one was not settled for the epoch.

    An evaluation selects nothing, so there a computed one matches all.
    """
    if not policy.agent_match.startswith(COMPUTED):
        return policy.agent_match
    if epoch.mode != "train":
        return ""
    found = epoch.patterns.get(policy.name)
    if found is None or found.setting != policy.agent_match:
        raise SettingsError(
            f"policies.{policy.name}.agent_match: {policy.agent_match!r} was not computed when {epoch.named} "
            f"began; run the epoch with these settings"
        )
    return found.pattern


def known_prompts(lake: Lake, epoch: EpochManifest) -> dict[str, str]:
    """Return prompt → agent, as the run's derived training epochs before this one have it."""
    earlier = [e for e in lake.manifests.epochs(epoch.run, "train") if e.epoch < epoch.epoch and not e.sources]
    files = [str(lake.path(e.tables["agent_prompts"])) for e in earlier if "agent_prompts" in e.tables]
    if not files:
        return {}
    with lake.engine() as con:
        con.read_parquet(files).create_view("agent_prompts")
        return {str(key): agent for key, agent in con.execute(sql.text("plan/known_prompts")).fetchall()}


def require_apart(epoch: Epoch) -> None:
    """Raise SettingsError where two policies' patterns both take one agent of the derived epoch: nothing is trained then."""
    rows = pq.read_table(epoch.table("policy_overlaps")).to_pylist()
    if not rows:
        return
    named = "; ".join(
        "agent {agent!r} by policies {policy} ({agent_match!r}) and {other_policy} ({other_match!r})".format(**row)
        for row in rows[:5]
    )
    raise SettingsError(
        f"agent_match of several policies takes one agent: {named}{'; …' if len(rows) > 5 else ''}. Make a pattern narrower, or "
        "subtract with agent_exclude; the epoch's rollouts stay, run it again with the settings corrected"
    )


def agents_before(epoch: Epoch) -> list[dict[str, Any]]:
    """Return the rows of the view `agents` of the run's last derived training epoch before this one; empty where there
    is none."""
    epoch.lake.rebuild_catalog()
    with catalog.connect(epoch.lake.root) as con:
        relation = con.sql(
            """
            FROM agents
            WHERE run = $run AND mode = 'train' AND epoch = (
                SELECT max(epoch) FROM agents WHERE run = $run AND mode = 'train' AND epoch < $epoch
            )
            """,
            params={"run": epoch.run, "epoch": epoch.number},
        )
        return sql.rows(relation)


def _compute(epoch: Epoch, policy: PolicySettings) -> str:
    setting = f"policies.{policy.name}.agent_match"
    if policy.agent_match.startswith("@"):
        function = load_callable(policy.agent_match.removeprefix("@"), setting)
        try:
            found = function(agents_before(epoch))
        except Exception as error:
            raise SettingsError(
                f"{setting}: {policy.agent_match} failed: {type(error).__name__}: {error}; it gets the agents of the last "
                "epoch as a list of dicts, empty before the first"
            ) from error
    else:
        found = _ask(epoch.lake, policy.agent_match.removeprefix(BY_SQL), setting)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise SettingsError(f"{setting}: {policy.agent_match} gave {found!r}; it has to give a regex, as text")
    try:
        duckdb.execute("SELECT regexp_matches('', ?)", [found])
    except duckdb.Error as error:
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(
            f"{setting}: {policy.agent_match} gave {found!r}, no pattern RE2 can take ({reason})"
        ) from None
    return found


def _ask(lake: Lake, query: str, setting: str) -> Any:
    lake.rebuild_catalog()
    try:
        with catalog.connect_alone(lake.root) as con, user_sql.asked(con, query) as answer:
            rows = list(answer.rows(2))
    except user_sql.QueryError as error:
        raise SettingsError(f"{setting}: the query fails: {error}") from None
    if len(rows) > 1 or (rows and len(rows[0]) != 1):
        raise SettingsError(
            f"{setting}: the query gives {len(rows[0])} columns and {'several rows' if len(rows) > 1 else 'one row'}; it "
            "has to give one text, say '^(' || string_agg(regexp_escape(agent), '|') || ')$'"
        )
    return rows[0][0] if rows else None


def check_patterns(settings: Settings) -> None:
    """Raise SettingsError for a pattern RE2 cannot take, naming the setting; called before the first rollout."""
    patterns = {"reward.reward_match": settings.reward.reward_match}
    for i, policy in enumerate(settings.policies):
        if not policy.agent_match.startswith(COMPUTED):
            patterns[f"policies.{i}.agent_match"] = policy.agent_match
        elif policy.agent_match.startswith(BY_SQL):
            try:
                user_sql.checked(policy.agent_match.removeprefix(BY_SQL))
            except user_sql.QueryError as error:
                raise SettingsError(f"policies.{i}.agent_match: {error}") from None
        patterns[f"policies.{i}.agent_exclude"] = policy.agent_exclude
    patterns |= {f"prompts.{name}.agent_match": prompt.agent_match for name, prompt in settings.prompts.items()}
    if isinstance(settings.reward.air, list):
        for i, rule in enumerate(settings.reward.air):
            patterns[f"reward.air.{i}.tool"] = rule.tool
            patterns[f"reward.air.{i}.pattern"] = rule.pattern
    for i, agent_rule in enumerate(settings.agent_rules):
        patterns[f"agent_rules.{i}.pattern"] = agent_rule.pattern
        patterns[f"agent_rules.{i}.when"] = agent_rule.when
    for i, redaction in enumerate(settings.lake.redact):
        patterns[f"lake.redact.{i}.pattern"] = redaction.pattern
    with duckdb.connect() as con:
        for key, given in patterns.items():
            if given is None:
                continue
            try:
                con.execute("SELECT regexp_matches('', ?)", [given])
            except duckdb.Error as error:
                reason = str(error).split("\n", 1)[0]
                excludes = key.startswith("policies.") and key.endswith("agent_match")
                remedy = ": say what to leave out with agent_exclude" if excludes else ""
                raise SettingsError(
                    f"{key}: {given!r} is no pattern RE2 can take ({reason}); RE2 has no look-around and no "
                    f"back-references{remedy}"
                ) from None
