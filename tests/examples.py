"""How often property tests draw: a few examples in `make test-fast`, twice as many in `make test`, six times in `make test-all`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

times = 6  # conftest.py lowers it where tests are left out

# An example takes as long as it takes: by default one of over 200 ms fails, which on a busy machine any can.
settings.register_profile("untimed", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("untimed")


def of_many(examples: int) -> settings:
    """Settings of a property test: so many examples."""
    return settings(max_examples=examples * times)
