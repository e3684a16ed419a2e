"""Property tests have no clock: on a busy machine any example can take long."""

from __future__ import annotations

import time

from hypothesis import given, settings, strategies


@settings(max_examples=2)
@given(strategies.just(0))
def test_an_example_takes_as_long_as_it_takes(_: int) -> None:
    time.sleep(0.3)
