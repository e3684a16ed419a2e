"""How often property tests draw: a few examples in `make test-fast`, twice as many in `make test`, six times in `make test-all`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

times = 6  # conftest.py lowers it where tests are left out


def of_many(examples: int) -> settings:
    """Settings of a property test: so many examples, each as dear as it likes."""
    return settings(max_examples=examples * times, deadline=None, suppress_health_check=list(HealthCheck))
