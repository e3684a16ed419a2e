"""The benches run, check what they count, and print the figures they promise. What the figures are is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_KEYS = ["name", "value", "unit", "baseline", "ratio", "n"]


def figures(*command: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run([sys.executable, "-m", *command], cwd=_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(list(line)[: len(_KEYS)] == _KEYS for line in lines)
    return {line["name"]: line for line in lines}


def test_the_ingest_bench_runs_without_its_peer(tmp_path: Path) -> None:
    found = figures("bench.ingest", "--quick", "--folder", str(tmp_path), "--peer", str(tmp_path / "none"))
    assert set(found) == {
        "ingest_ack",
        "ingest_decode_large",
        "lake_bytes_per_span",
        "ingest_ack_small",
        "ingest_decode_small",
        "server_rss_growth_mb",
    }
    assert found["ingest_ack"]["value"] > 0 and found["ingest_ack"]["baseline"] is None
    assert 8_500 < found["lake_bytes_per_span"]["baseline"] < 9_500  # a large span has 9 KB
    assert found["server_rss_growth_mb"]["lost"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.extra  # of benches, one a kind is enough
def test_the_query_bench_fills_compacts_and_asks(tmp_path: Path) -> None:
    found = figures("bench.query", "--quick", "--folder", str(tmp_path))
    line = found["query_rollout_10m_s"]
    assert line["rows"]["tree"] == line["rows"]["random_tree"] == 50
    assert line["rows"]["agent"] == 50 and line["rows"]["rare_agent"] > 0
    assert line["files"] < 10
    assert not list(tmp_path.iterdir())


@pytest.mark.extra  # likewise
def test_the_page_bench_makes_a_home_and_asks_every_page_of_it() -> None:
    found = figures("bench.page", "--quick", "--rounds", "1")
    assert set(found) == {"page_warm_ms", "page_cold_ms", "page_open_ms"}
    for name in ("page_warm_ms", "page_cold_ms"):
        assert found[name]["n"] == 178 and found[name]["value"] == pytest.approx(
            max(found[name]["pages"].values()), 0.1
        )
        assert {"run", "held-out task", "rollout", "compare", "ask"} <= set(found[name]["pages"])


@pytest.mark.extra  # likewise
def test_the_evidence_bench_judges_every_call() -> None:
    found = figures("bench.evidence", "evidence_lost_20", "evidence_dumps_lost", "--quick")
    assert set(found) == {"evidence_lost_20", "evidence_dumps_lost"}
    assert all(0 <= line["value"] + line["left_out"] <= 1 and line["n"] >= 300 for line in found.values())


@pytest.mark.extra  # likewise
def test_the_credit_bench_compares_every_estimator_with_what_was_planted() -> None:
    line = figures("bench.credit", "credit_shares_own", "--quick")["credit_shares_own"]
    estimators = {"reinforce", "reinforce_pp", "grpo", "dr_grpo", "rloo"}
    wanted = {f"{assign}/{e}" for assign in ("final", "nearest", "discounted") for e in estimators}
    assert set(line["by"]) == wanted | {"nearest/counterfactual", "discounted/counterfactual", "discounted/all_others"}
    assert line["by"]["nearest/rloo"][0] > 0.8, "each call's own share, with little noise"
    assert 0 < line["fell_back"] < 1 and line["n"] == 3 * 16 * 6
