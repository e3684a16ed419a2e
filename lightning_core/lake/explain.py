"""Why a rollout was trained on as it was: its tree, its calls, its rewards, from the tables of its epoch."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from lightning_core.events import named
from lightning_core.lake import ask, catalog, sql
from lightning_core.lake.manifest import LakeError

Row = dict[str, Any]
_NEAR = 5


def explain(
    root: Path | str,
    rollout: str,
    run: str | None = None,
    epoch: int | None = None,
    on: duckdb.DuckDBPyConnection | None = None,
) -> Row:
    """Return all that the catalog of the lake at `root` knows of a rollout: in its newest epoch, or in the one that is
    given; `on`: one of its connections, default: a new one.

    Keys: rollout_id, run, epoch, mode, attempts (one row an execution), attempt_id (the one that counts, or else the
    first), spans, calls, rewards, refused: the columns of sql/explain/. Raises LakeError for a rollout that is in none,
    with names like it.
    """
    with contextlib.nullcontext(on) if on is not None else catalog.connect(root) as con:
        try:
            attempts = _rows(con, "attempts", rollout_id=rollout, run=run, epoch=epoch)
            if not attempts:
                raise LakeError(_unknown(con, rollout, run, epoch))
            newest = attempts[0]
            attempts = [row for row in attempts if (row["run"], row["epoch"]) == (newest["run"], newest["epoch"])]
            scope = {
                "run": newest["run"],
                "epoch": newest["epoch"],
                "rollout_id": rollout,
                "attempt_id": newest["attempt_id"],
            }
            parts = {name: _rows(con, name, **scope) for name in ("spans", "calls", "rewards")}
            parts["refused"] = _rows(con, "refused", rollout_id=rollout)
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise LakeError(ask.of_another_version(root, error)) from None
    return scope | {"mode": newest["mode"], "attempts": attempts} | parts


@cache
def query(name: str) -> str:
    """Return the SQL of a file of `sql/explain`, with the methods of the hierarchy, which no catalog has, in it."""
    methods = "\n".join(line for line in sql.text("hierarchy/methods").splitlines() if not line.startswith("--"))
    return sql.text(f"explain/{name}").replace("JOIN methods ", f"JOIN ({methods}) AS methods ")


def as_json(found: Row) -> str:
    """Return what `explain` found as JSON; a reward that is no finite number is text there."""
    return json.dumps(_plain(found), default=str, indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def found_tree(spans: list[Row]) -> list[tuple[int, Row]]:
    """Return the spans as they declared one another: (depth, span), parents before children.

    Roots are those whose parent is none or never came; a circle of parents is entered at its earliest span.
    """
    by_id: dict[tuple[str | None, str], Row] = {}
    real = [row for row in spans if row["op"] != "missing"]
    for row in real:
        by_id.setdefault((row["trace_id"], row["span_id"]), row)
        by_id.setdefault((None, row["span_id"]), row)
    children: dict[int, list[Row]] = {}
    roots = []
    for row in real:
        parent = row["declared_parent_id"]
        above = by_id.get((row["trace_id"], parent)) or by_id.get((None, parent))
        if above is None or above is row:
            roots.append(row)
        else:
            children.setdefault(above["node"], []).append(row)
    return _walk([*roots, *real], children)


def repaired_tree(spans: list[Row]) -> list[tuple[int, Row]]:
    """Return the spans as repaired: (depth, span), parents before children."""
    children: dict[int, list[Row]] = {}
    for row in spans:
        if row["parent_node"] is not None:
            children.setdefault(row["parent_node"], []).append(row)
    return _walk([row for row in spans if row["parent_node"] is None], children)


def _walk(roots: list[Row], children: dict[int, list[Row]]) -> list[tuple[int, Row]]:
    walked: list[tuple[int, Row]] = []
    seen: set[int] = set()
    for root in roots:
        waiting = [(0, root)]
        while waiting:
            depth, row = waiting.pop()
            if row["node"] not in seen:
                seen.add(row["node"])
                walked.append((depth, row))
                waiting += [(depth + 1, child) for child in reversed(children.get(row["node"], []))]
    return walked


def why_not(call: Row, mode: str) -> str | None:
    """Return why a call is not trained on; None where it is."""
    if mode != "train":
        return "evaluation: nothing of it is trained on"
    return call["left_out"]


def _rows(con: duckdb.DuckDBPyConnection, name: str, **parameters: Any) -> list[Row]:
    return sql.rows(con.sql(query(name), params=parameters))


def _unknown(con: duckdb.DuckDBPyConnection, rollout: str, run: str | None, epoch: int | None) -> str:
    """Return the message for a rollout that was not found: where it is instead, or what is called much the same."""
    elsewhere = _rows(con, "attempts", rollout_id=rollout, run=None, epoch=None)
    if elsewhere:
        places = sorted({f"run {row['run']} {named(row['mode'], row['epoch'])}" for row in elsewhere})
        return f"rollout {rollout!r} is not in {_asked(run, epoch)}; it is in {', '.join(places)}"
    spans = con.execute("SELECT count(*) FROM spans WHERE rollout_id = ?", [rollout]).fetchall()[0][0]
    if spans:
        return f"rollout {rollout!r} has {spans} spans, but its epoch is not derived yet (or does not plan it)"
    known = [row[0] for row in con.execute("SELECT DISTINCT rollout_id FROM scored_attempts ORDER BY ALL").fetchall()]
    near = difflib.get_close_matches(rollout, known, _NEAR, 0.5) or [name for name in known if rollout in name][:_NEAR]
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {len(known)}: lightning-flows sql rollouts"
    return f"no rollout {rollout!r}; {hint}"


def _asked(run: str | None, epoch: int | None) -> str:
    return " ".join([*([f"run {run}"] if run is not None else []), *([f"epoch {epoch}"] if epoch is not None else [])])
