"""`make test-fast` is tests/unit and tests/property; the rest starts servers, agents, vLLM or training."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests import examples

_HERE = Path(__file__).parent
_mine: set[Path] = set()  # modules that this process runs, of those that several share


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, help="folder in which several pytest at once agree who runs which module")


def pytest_configure(config: pytest.Config) -> None:
    if "not slow" in config.option.markexpr:
        examples.times = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).parts[0] in ("integration", "e2e"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    share = item.config.option.share
    if share is None:
        return None
    claim = share / "-".join(item.path.relative_to(_HERE).parts)
    try:
        if claim not in _mine:
            claim.touch(exist_ok=False)
            _mine.add(claim)
    except FileExistsError:
        return True  # another runs it
    return None


def pytest_collection_finish() -> None:
    # What imports have made stays: looking through it again and again for garbage is time for nothing.
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
