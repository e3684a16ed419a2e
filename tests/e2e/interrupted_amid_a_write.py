"""without_vllm.py, to which Ctrl-C comes once, amid a transaction of MLflow's.

python -m tests.e2e.interrupted_amid_a_write train-epoch settings.yaml
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sqlalchemy import Engine, event

from tests.e2e.without_vllm import main

_sent: list[str] = []


@event.listens_for(Engine, "after_cursor_execute")
def interrupt(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    if statement.startswith("INSERT INTO model_versions") and not _sent:
        _sent.append(statement)
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main(*sys.argv[1:3])
