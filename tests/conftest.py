"""`make test-fast` is tests/unit and tests/property; the rest starts servers, agents, vLLM or training."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_flows.flows.prefect_api import prefect_api
from tests import examples, guard
from tests.guard import pytest_runtest_protocol, pytest_runtest_teardown

__all__ = ["pytest_runtest_protocol", "pytest_runtest_teardown"]

_HERE = Path(__file__).parent
_LONGEST_FIRST = ("e2e", "integration", "security", "property", "unit")


def pytest_configure(config: pytest.Config) -> None:
    guard.pytest_configure(config)
    # A shell has what it starts in the background ignore Ctrl-C, and so would every command that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Prefect's own server of a flow without one has 20 s to start, which are few beside other work.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    left_out = config.option.markexpr
    if "not extra" in left_out:
        examples.times = 1 if "not slow" in left_out else 2


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules without a slow test are not imported where only slow ones are run: imports take as long as many tests."""
    if not config.option.markexpr.startswith("slow") or collection_path.suffix != ".py":
        return None
    of_fast = collection_path.relative_to(_HERE).parts[0] in ("unit", "property")
    return True if of_fast and "mark.slow" not in collection_path.read_text() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).parts[0] in ("integration", "e2e", "security"):
            item.add_marker(pytest.mark.slow)
    # The longest modules first: what is left at the end for one core alone is then short.
    items.sort(key=lambda item: _LONGEST_FIRST.index(item.path.relative_to(_HERE).parts[0]))


def pytest_collection_finish() -> None:
    # What imports have made stays: looking through it again and again for garbage is time for nothing.
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="module")
def with_prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that use one Prefect server; each would start its own, which takes it ten seconds."""
    before = dict(os.environ)
    with prefect_api(tmp_path_factory.mktemp("prefect")):
        yield dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
