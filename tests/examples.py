"""How often property tests draw: a few examples in `make test-fast`, many where slow tests run too."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_THOROUGH = 4
times = _THOROUGH  # conftest.py lowers it to one where slow tests are left out


def of_many(examples: int) -> settings:
    """Settings of a property test: so many examples, each as dear as it likes."""
    return settings(max_examples=examples * times, deadline=None, suppress_health_check=list(HealthCheck))
