"""Check a machine with a GPU in ten minutes: `make gpu-check`, or `python -m bench.gpu`. One JSON line a check, as it comes.

    --trainer-only   without vLLM and network: torch, transformers and triton, with TRL's wheel (bench/README.md)
    --only NAME      this one (several times); a prefix takes all that begin so
    --list           the names
    --small          tiny shapes, for a machine without a GPU: what is asked of a card is not asked

Exits with 1 where a check failed. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time

from bench.gpu import attention, serving, steps
from bench.gpu.check import Check, Found, run
from lightning_core.gpus import OLDEST_DRIVER, cards


def machine(small: bool) -> Found:
    """The card, its driver and the versions."""
    import torch
    import transformers

    here = cards()
    found: Found = {"card": here[0].name if here else "none", "driver": here[0].driver if here else None}
    found |= {"gb_free": here[0].free / 1e9 if here else 0.0, "torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"transformers": transformers.__version__, "python": platform.python_version()}
    new = bool(here) and int(here[0].driver.partition(".")[0]) >= OLDEST_DRIVER and torch.cuda.is_available()
    return found | {"date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv[1:]), "ok": small or new}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer-only", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    checks = [Check("machine", machine), *attention.checks(), *steps.checks(), *serving.checks()]
    if options.trainer_only:
        checks = [check for check in checks if not check.vllm]
    if options.only:
        checks = [check for check in checks if check.name.startswith(tuple(options.only))]
    if options.list:
        for check in checks:
            print(json.dumps({"check": check.name, "vllm": check.vllm}))
        return 0
    if not checks:
        parser.error(f"no check is called {', '.join(options.only)}; --list names them")
    from lightning_core.training.job import import_trainer

    import_trainer()
    return 1 if run(checks, options.small) else 0


if __name__ == "__main__":
    sys.exit(main())
