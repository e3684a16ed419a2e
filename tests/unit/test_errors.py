"""What a user can mend is one line; a bug keeps its traceback, and says where to report it."""

from __future__ import annotations

import ast
import traceback
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lightning_core.config import SettingsError
from lightning_core.errors import LightningError, Missing
from lightning_flows.flows import cli

ROOT = Path(__file__).resolve().parents[2]


class _Mended(LightningError):
    pass


@pytest.mark.parametrize("error", [_Mended("here: do this"), SettingsError("here: do this"), Missing("here: do this")])
def test_a_command_shows_what_a_user_can_mend_as_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(command_that_raises(error, monkeypatch), ["broken"])
    assert (done.exit_code, done.output) == (1, "Error: here: do this\n")


@pytest.mark.parametrize("error", [KeyError("sequences"), FileNotFoundError(2, "No such file", "x"), RuntimeError("?")])
def test_a_command_shows_a_bug_with_its_traceback_and_where_to_report_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(command_that_raises(error, monkeypatch), ["broken"])
    assert done.exception is error
    shown = "".join(traceback.format_exception(error))
    assert "in command_of_a_test" in shown
    assert shown.splitlines()[-1].startswith(
        f"lightning-flows {metadata.version('lightning-flows')} did not expect this"
    )
    urls = metadata.metadata("lightning-flows").get_all("Project-URL") or []
    assert ("http" in shown.splitlines()[-1]) == any(url.startswith("Issues") for url in urls)


def command_that_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    @click.command("broken")
    def command_of_a_test() -> None:
        raise error

    monkeypatch.setitem(cli.main.commands, "broken", command_of_a_test)
    return cli.main


# Raised and caught within one package, or in an agent's process.
CAUGHT_INSIDE = {
    *("HttpError", "ClientGone", "UpstreamDown", "Broken"),
    *("OtlpError", "BrokenSpans", "WireError", "CutOff"),
    *("_Refused", "_TooDeep", "RefusedError", "DeliveryError", "LeftBehindError"),
}


def test_every_error_of_ours_that_reaches_a_user_is_one_that_users_can_mend() -> None:
    ours = {}
    for folder in ("lightning_core", "tasks", "flows"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.ClassDef):
                    continue
                bases = {ast.unparse(base) for base in node.bases}
                if any(base.endswith(("Error", "Exception")) for base in bases):
                    ours[node.name] = bases
    mended = {"LightningError", *ours} - CAUGHT_INSIDE
    assert {name for name, bases in ours.items() if name in mended and not bases & mended} == {"LightningError"}
