"""`lightning-flows report`: a run's pages as one file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from lightning_core.ui import one_file
from lightning_flows.flows.cli import main
from tests.lake_maker import derived
from tests.page_rig import curves, one_epoch, rollout, visible


def test_a_report_is_one_file_whose_links_lead_within_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    one_epoch(home)
    done = CliRunner().invoke(main, ["report", "run", "--home", str(home), "--into", str(tmp_path / "run.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "run.html").read_text()
    links = re.findall(r'href="([^"]*)"', text)
    assert links and all(link.startswith("#") and f'id="{link[1:]}"' in text for link in links)
    assert "<script" not in text and "src=" not in text and "<button" not in text
    assert "call 1 worker" in visible(text), "the worst rollout is in it"
    refused = CliRunner().invoke(main, ["report", "other", "--home", str(home), "--into", str(tmp_path / "no.html")])
    assert refused.exit_code == 1 and "no rollout yet, or is no run" in refused.output
    assert not (tmp_path / "no.html").exists()


def test_a_report_is_no_larger_than_it_may_be_whatever_its_letters_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_file, "_MOST_BYTES", 400_000)
    lake, _ = derived(tmp_path, [row for number in range(20) for row in rollout(number, 0.0, "あ" * 1000)])
    lake.rebuild_catalog()
    text = one_file.report(tmp_path, "run")
    assert "call 1 worker" in visible(text)
    assert len(text.encode()) <= 400_000


def test_a_report_has_the_comparison_that_its_run_leads_to(tmp_path: Path) -> None:
    curves(tmp_path)
    text = one_file.report(tmp_path, "run")
    (link,) = re.findall(r'Compare the answers: <a href="#([^"]+)"', text)
    assert f'<article id="{link}">' in text and "got before training" in visible(text)
