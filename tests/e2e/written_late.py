"""without_vllm.py, whose versions reach the disk seconds after they are served: time to end everything in between.

python -m tests.e2e.written_late train settings.yaml
"""

from __future__ import annotations

import sys
import time
from unittest import mock

from lightning_core.policies.store import PolicyStore
from tests.e2e.without_vllm import main

_sync = PolicyStore.sync


def late(store: PolicyStore, version: str) -> None:
    time.sleep(5)
    _sync(store, version)


if __name__ == "__main__":
    with mock.patch.object(PolicyStore, "sync", late):
        main(*sys.argv[1:3])
