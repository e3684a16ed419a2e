"""Rollouts that nobody rolled out: agents in production sent their spans, and an epoch learns from them.

Their spans stay as they came. A root span a rollout, written now, says which epoch learns from it, so everything that
works on an epoch works on this one: the SQL, training, the record.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import Field

from lightning_core.config.section import Section, SettingsError
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.finetune import ns_of, require_others_rollouts
from lightning_core.lake import sql
from lightning_core.lake.manifest import Source


class Choice(Section):
    """Which of the rollouts that came are learned from: all that meet every condition."""

    since: datetime | None = Field(
        None, description="began at or after; without an offset in the local time of the machine"
    )
    until: datetime | None = Field(None, description="began before")
    attributes: dict[str, str] = Field(
        default_factory=dict, description="attributes (of a span or its resource) that the rollout has, with this value"
    )
    where: str | None = Field(
        None, description="SQL condition on the columns of `spans`; it holds for one of its spans"
    )
    group_by: str | None = Field(
        None,
        description="attribute whose value names the group; default: the group that the rollout was opened with, else one of its own",
    )
    silent_s: float = Field(
        60, ge=0, description="seconds without a new span after which a rollout that did not end is over"
    )


@dataclass(frozen=True)
class Chosen:
    """Rows of sql/learn/production_rollouts.sql that the epoch learns from, and how many others were left out, by reason."""

    rollouts: list[dict[str, Any]]
    left_out: Counter[str]


def choose(epoch: Epoch, choice: Choice, now_ns: int) -> Chosen:
    """Ask the whole lake. Raises SettingsError for a condition that DuckDB cannot take."""
    with epoch.lake.connect() as con:
        con.execute(
            """
            CREATE TABLE learn_choice AS
            SELECT ?::VARCHAR AS run, ?::BIGINT AS epoch, ?::BIGINT AS since_ns, ?::BIGINT AS until_ns,
                ?::BIGINT AS ended_before_ns, ?::VARCHAR AS group_by, ?::BOOLEAN AS without_ids
            """,
            [
                epoch.run,
                epoch.number,
                ns_of(choice.since),
                ns_of(choice.until),
                now_ns - int(choice.silent_s * 1e9),
                choice.group_by,
                any(p.imitates and p.examples.without_ids == "tokenize" for p in epoch.settings.policies),
            ],
        )
        wanted = choice.attributes
        keys, values = pa.array(list(wanted), pa.string()), pa.array(list(wanted.values()), pa.string())
        con.register("learn_attributes", pa.table({"key": keys, "value": values}))
        try:
            con.execute(
                f"CREATE TABLE learn_filtered AS SELECT DISTINCT rollout_id, attempt_id FROM spans WHERE {choice.where or 'true'}"
            )
        except duckdb.Error as error:
            reason = str(error).split("\n", 1)[0]
            raise SettingsError(
                f"where: {choice.where!r} is no condition on spans ({reason}); see docs/data.md"
            ) from None
        sql.create(con, "learn/production_rollouts")
        rows = con.sql("FROM production_rollouts").to_arrow_table().to_pylist()
    taken = [row for row in rows if row["left_out"] is None]
    return Chosen(taken, Counter(row["left_out"] for row in rows if row["left_out"] is not None))


def take(epoch: Epoch, choice: Choice, now_ns: int) -> Chosen:
    """Choose rollouts and make them the epoch's, from the first of them in the spool on; `train-epoch` will run none of them.

    Raises SettingsError where nothing is left to learn from, LakeError where the epoch rolls out itself.
    """
    manifest = epoch.manifest
    require_others_rollouts(manifest, "`learn`")
    chosen = choose(epoch, choice, now_ns)
    if not chosen.rollouts:
        why = ", ".join(f"{n} {reason}" for reason, n in chosen.left_out.items()) or "no agent sent any"
        raise SettingsError(f"learn: no rollout is left to learn from ({why})")
    manifest.planned = [row["rollout_id"] for row in chosen.rollouts]
    manifest.sources = [Source(run=epoch.run, epoch=epoch.number)]
    manifest.opened_offset, manifest.sealed_offset = min(row["first_offset"] for row in chosen.rollouts), None
    epoch.save()
    return chosen
