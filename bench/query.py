"""An analyst's two questions over ten million small spans, each asked by a process that opens the catalog for it.

The spans are written as the decoder would have left them (files of 64 MB of spool, sorted by rollout within a file),
then compacted by the lake and entered in a catalog. 50 spans a rollout, 64 rollouts at a time, 20 runs; every tenth
rollout has a random id, as production agents have, so that it may lie in any file.

    query_rollout_10m_s    the slowest of these, each the median over processes, from opening the catalog to the rows:
                           `tree` and `random_tree` (one rollout as a tree, ordered), `agent` (rollouts of an agent that
                           made an eighth of all spans), `rare_agent` (all spans of an agent of one run).
                           baseline: what is promised. `unpruned`: the tree, where no row group can be left out;
                           `uncompacted`: the random tree before compaction

    .venv/bin/python -m bench.query [--quick] [--spans 10000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa

from bench.report import figure, say
from lightning_core.lake import catalog, compact, parquet, schema
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import SpanFile, SpanManifest

SPANS_A_ROLLOUT, AT_ONCE, RUNS = 50, 64, 20
SPANS_A_FILE = 110_000  # 64 MB of spool, 600 bytes a span
_BYTES_A_SPAN = 600
_PROMISED_S = 1.0
_SAY_EVERY = 20  # files

# Grain: one row per span. Parameters: first, last span of the file; rollouts in all.
_SPANS = f"""
WITH numbered AS (
    SELECT
        range AS n,
        range // {SPANS_A_ROLLOUT * AT_ONCE} AS epoch,
        -- rollouts of an epoch take turns, as concurrent ones do
        range // {SPANS_A_ROLLOUT * AT_ONCE} * {AT_ONCE} + range % {AT_ONCE} AS rollout,
        range // {AT_ONCE} % {SPANS_A_ROLLOUT} AS step
    FROM range($first, $last)
),
drawn AS (
    SELECT
        *,
        rollout * {RUNS} // $rollouts AS run_number,
        hash(n) AS random,
        hash(rollout, 7) AS rollout_random,
        ['search', 'open_page', 'run_python', 'read_file', 'calculator', 'ask_database'][1 + n % 6] AS tool,
        ['planner', 'researcher', 'coder', 'critic', 'router', 'summariser', 'browser', 'grader'][1 + (hash(n) % 8)::INTEGER] AS agent
    FROM numbered
)
SELECT
    CASE WHEN rollout % 10 = 0 THEN printf('%016x', rollout_random)
        ELSE printf('run%02d.%04d.task-%04d.%d', run_number, epoch, rollout // 8 % 8, rollout % 8) END AS rollout_id,
    printf('a%06x', rollout_random % 16777216) AS attempt_id,
    'path' AS scope,
    printf('%016x%016x', rollout_random, hash(rollout)) AS trace_id,
    printf('%016x', random) AS span_id,
    -- every seventh span back, so trees are some eight levels deep and wide
    CASE WHEN step > 0 THEN printf('%016x', hash(n - {AT_ONCE} * least(step, 1 + step % 7))) END AS parent_span_id,
    'execute_tool ' || tool AS name,
    'internal' AS kind,
    'tool' AS op,
    1790000000000000000 + n * 1000000 AS start_ns,
    1790000000000000000 + n * 1000000 + 30000000 + (random % 1000000)::BIGINT AS end_ns,
    CASE WHEN n % 97 = 0 THEN 'error' ELSE 'unset' END AS status,
    CASE WHEN run_number = {RUNS // 2} AND n % 1000 = 0 THEN 'auditor' ELSE agent END AS agent_name,
    'gen_ai.agent.name' AS agent_name_source,
    tool AS tool_name,
    printf('call_%016x', hash(n, 1)) AS tool_call_id,
    printf('{{"query": "%d %d"}}', hash(n, 2) % 100000, n) AS tool_arguments,
    md5(n::VARCHAR) || ' ' || md5((-n)::VARCHAR) AS tool_result,
    'execute_tool' AS operation,
    MAP {{'session.id': printf('%016x', rollout_random), 'thread.id': (139000000000000 + n % 64)::VARCHAR,
        'code.function.name': 'tools.' || tool, 'tool.cached': (n % 4 = 0)::VARCHAR}} AS attributes,
    MAP {{'service.name': 'bench'}} AS resource,
    'bench@1.0' AS instrumentation,
    1790000000000000000 + n * 1000000 + 100000000 AS received_ns,
    (n // 512 * 512 * {_BYTES_A_SPAN})::BIGINT AS record_offset,
    (n % 512)::INTEGER AS record_index,
    (hash(n, 5)::HUGEINT - 9223372036854775808)::BIGINT AS content_hash
FROM drawn
ORDER BY rollout_id, attempt_id, start_ns
"""
_TREE = """
WITH RECURSIVE spans_of AS (FROM spans WHERE {where}),
tree AS (
    SELECT *, 0 AS depth FROM spans_of WHERE parent_span_id IS NULL
    UNION ALL
    SELECT child.*, depth + 1 FROM spans_of AS child JOIN tree ON child.parent_span_id = tree.span_id
)
SELECT span_id, parent_span_id, depth, name, agent_name, start_ns, end_ns, attributes FROM tree ORDER BY start_ns
"""
QUESTIONS = {
    "tree": _TREE.format(where="rollout_id = $rollout"),
    "random_tree": _TREE.format(where="rollout_id = $random_rollout"),
    "agent": "SELECT rollout_id, count(*) AS n FROM spans WHERE agent_name = 'critic' GROUP BY ALL ORDER BY n DESC, 1 LIMIT 50",
    "rare_agent": "SELECT rollout_id, span_id, name, start_ns FROM spans WHERE agent_name = 'auditor' ORDER BY start_ns",
    "unpruned_tree": _TREE.format(where="reverse(rollout_id) = reverse($rollout)"),
}


def fill(lake: Lake, spans: int, per_file: int) -> None:
    """Span files as the decoder leaves them."""
    target = schema.arrow_schema(schema.SPANS)
    manifest = SpanManifest()
    with duckdb.connect() as con:
        for start in range(0, spans, per_file):
            stop = min(start + per_file, spans)
            values = {"first": start, "last": stop, "rollouts": -(-spans // SPANS_A_ROLLOUT)}
            made = con.sql(_SPANS, params=values).to_arrow_table()
            columns = [made[f.name] if f.name in made.schema.names else pa.nulls(stop - start, f.type) for f in target]
            table = pa.table(columns, names=target.names).cast(target)
            first, last = start * _BYTES_A_SPAN, stop * _BYTES_A_SPAN
            path = f"spans/{first:020d}-{last:020d}.parquet"
            size = parquet.write_table(lake.root / path, table)
            manifest.files.append(SpanFile(path=path, rows=table.num_rows, bytes=size, start=first, end=last))
            if start // per_file % _SAY_EVERY == 0:
                say(f"  {stop} spans written")
    manifest.decoded_offset = spans * _BYTES_A_SPAN
    lake.manifests.put_spans(manifest)


def ask(root: Path, question: str) -> None:
    """Open the catalog, ask, print {"seconds", "rows"}: the life of a process that this bench starts."""
    values = json.loads((root.parent / "values.json").read_text())
    sql = QUESTIONS[question]
    began = time.perf_counter()
    with catalog.connect(root) as con:
        rows = con.execute(sql, {k: v for k, v in values.items() if f"${k}" in sql}).fetchall()
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "rows": len(rows)}))


def asked(home: Path, question: str, times: int) -> tuple[float, int]:
    """(median seconds, rows) over fresh processes."""
    command = [sys.executable, "-m", "bench.query", "--ask", question, "--home", str(home)]
    answers = [json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(times)]
    return statistics.median(s["seconds"] for s in answers), answers[0]["rows"]


def measure(home: Path, spans: int, per_file: int, times: int) -> None:
    lake = Lake(home)
    began = time.perf_counter()
    fill(lake, spans, per_file)
    say(f"written in {time.perf_counter() - began:.0f} s, {len(lake.manifests.spans().files)} files")
    lake.rebuild_catalog()
    with lake.connect() as con:
        middle = "SELECT rollout_id FROM spans WHERE rollout_id {} ORDER BY hash(rollout_id) LIMIT 1"
        chosen = [con.execute(middle.format(x)).fetchall() for x in ("LIKE 'run%'", "NOT LIKE 'run%'")]
    [(rollout,)], [(random_rollout,)] = chosen
    (home / "values.json").write_text(json.dumps({"rollout": rollout, "random_rollout": random_rollout}))
    uncompacted, _ = asked(home, "random_tree", times)
    began = time.perf_counter()
    while compact.compact(lake).before:
        pass
    compaction_s = time.perf_counter() - began
    files = lake.manifests.spans().files
    say(f"compacted in {compaction_s:.0f} s, {len(files)} files, {sum(f.bytes for f in files) / 1e9:.2f} GB")
    lake.rebuild_catalog()
    with lake.connect() as con:
        [(there,)] = con.execute("SELECT count(*) FROM spans").fetchall()
    if there != spans:
        raise RuntimeError(f"{spans} spans were written, {there} are in the lake")
    found = {question: asked(home, question, times) for question in QUESTIONS}
    for question in ("tree", "random_tree", "unpruned_tree"):
        if found[question][1] != SPANS_A_ROLLOUT:
            raise RuntimeError(f"{question}: {found[question][1]} spans, a rollout has {SPANS_A_ROLLOUT}")
    unpruned = found.pop("unpruned_tree")[0]
    rows = {question: rows for question, (_, rows) in found.items()}
    figure(
        "query_rollout_10m_s",
        max(seconds for seconds, _ in found.values()),
        "s",
        _PROMISED_S,
        spans,
        smaller_is_better=True,
        **{question: took for question, (took, _) in found.items()},
        unpruned=unpruned,
        uncompacted=uncompacted,
        rows=rows,
        files=len(files),
        lake_gb=sum(f.bytes for f in files) / 1e9,
        compaction_s=compaction_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--spans", type=int, default=10_000_000)
    parser.add_argument("--times", type=int, default=7, help="processes that ask each question")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="the lake is made in it, and removed")
    parser.add_argument("--ask", choices=QUESTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask is not None:
        ask(options.home / "lake", options.ask)
        return
    sizes = (100_000, 10_000, 1) if options.quick else (options.spans, SPANS_A_FILE, options.times)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as home:
        measure(Path(home).resolve(), *sizes)


if __name__ == "__main__":
    main()
