"""`make test-fast` is tests/unit and tests/property; the rest starts servers, agents, vLLM or training."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).parts[0] in ("integration", "e2e"):
            item.add_marker(pytest.mark.slow)
