"""`make test-fast` is tests/unit and tests/property; the rest starts servers, agents, vLLM or training."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests import examples, guard
from tests.guard import pytest_runtest_protocol, pytest_runtest_teardown

__all__ = ["pytest_runtest_protocol", "pytest_runtest_teardown"]

_HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="1/2: every second module from the first; 2/2: from the second")


def pytest_configure(config: pytest.Config) -> None:
    guard.pytest_configure(config)
    left_out = config.option.markexpr
    if "not extra" in left_out:
        examples.times = 1 if "not slow" in left_out else 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).parts[0] in ("integration", "e2e"):
            item.add_marker(pytest.mark.slow)
    part, parts = (int(number) for number in config.option.part.split("/"))
    fast = dict.fromkeys(item.path for item in items if "slow" not in item.keywords)
    slow = [path for path in dict.fromkeys(item.path for item in items) if path not in fast]
    modules = {*list(fast)[part - 1 :: parts], *slow[part - 1 :: parts]}
    if parts > 1:
        config.hook.pytest_deselected(items=[item for item in items if item.path not in modules])
        items[:] = [item for item in items if item.path in modules]


def pytest_collection_finish() -> None:
    # What imports have made stays: looking through it again and again for garbage is time for nothing.
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
