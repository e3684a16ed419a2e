"""What trainings are forked from, and what a fork does: the imports, which take seconds, happen once for all trainings.

Run by lightning_core.process.fork_server, which training/launch.py owns.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lightning_core import training
from lightning_core.process.fork_server import Prepared
from lightning_core.training.code import training_code
from lightning_core.training.job import import_trainer


def prepare(init: dict[str, Any]) -> Prepared:
    """Import all of `training`: what is edited during a run must not be mixed with what was there before."""
    for module in pkgutil.iter_modules(training.__path__, f"{training.__name__}."):
        import_trainer(module.name)
    training_code()
    return _begin


def _begin(request: dict[str, Any]) -> Callable[[], object]:
    return lambda: _train(request["arguments"])


def _train(arguments: list[str]) -> None:
    """As `python -m lightning_core.training` with these arguments, also in the list of processes; does not return."""
    code = 1
    try:
        from setproctitle import setproctitle

        from lightning_core.training.__main__ import main

        setproctitle(shlex.join([sys.executable, "-m", "lightning_core.training", *arguments]))
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter would end
        traceback.print_exc()
    finally:
        try:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
