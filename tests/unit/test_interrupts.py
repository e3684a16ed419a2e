"""Ctrl-C and SIGTERM are noted, and come after what is held."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from lightning_core.process.interrupts import held, watched


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of a program at a terminal; a worker of the tests ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_an_interrupt_that_a_library_swallows_is_noted() -> None:
    with watched() as interrupts:
        assert not interrupts.came
        with contextlib.suppress(KeyboardInterrupt):
            interrupt()
        assert interrupts.came
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_is_noted_where_the_program_handles_it() -> None:
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append("SIGTERM"))
    with watched() as interrupts:
        interrupt(signal.SIGTERM)
    assert (interrupts.came, came) == (True, ["SIGTERM"])


def test_an_interrupt_waits_for_what_is_held_and_a_second_one_does_not() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), watched():
        with held():
            with held():
                interrupt()
                done.append("written")
            done.append("and this")
        done.append("nothing after it")
    assert done == ["written", "and this"]
    with pytest.raises(KeyboardInterrupt), watched(), held():
        interrupt()
        interrupt()
        done.append("nothing after the second")
    assert done == ["written", "and this"]


def test_outside_of_a_watch_and_in_other_threads_nothing_is_held() -> None:
    with pytest.raises(KeyboardInterrupt), held():
        interrupt()
        pytest.fail("it came at once")
    seen = []

    def work() -> None:
        with watched() as interrupts, held():
            seen.append(interrupts.came)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
