"""`python -m lightning_core.training job.json`: train one policy on one epoch's sequences, then exit.

`--jobs FD` in place of the file: do the jobs that are named on that descriptor, `{"job": file, "log": file}` a line, until it
ends. Each that is done adds `{"done": true}` to its progress file, and `{"kept": true}` when the optimizer's state is written; one
that fails ends the process.

Exit codes: 0 with `training.json` in the job's output folder; 3 where data, weights or the job cannot be trained on, or
memory is short, with `{"error": …}` as the progress file's last line; 1 for anything unforeseen, with a traceback (in the
progress file too, where it is one of several processes). `--with-parent PID` ends the process when that one is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from lightning_core.settings_file import explain_validation
from lightning_core.training import resident
from lightning_core.training.errors import LESS_MEMORY, TrainingError
from lightning_core.training.job import Job, Progress
from lightning_core.training.train_job import run_job

logger = logging.getLogger("lightning_core.training")

EXIT_UNTRAINABLE = 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lightning_core.training", description="train one policy once")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("job", nargs="?", type=Path, help="JSON file of a training job")
    what.add_argument("--jobs", type=int, metavar="FD", help="descriptor that names one job after another")
    parser.add_argument("--of", metavar="FOLDER", help="whose jobs they are, for the list of processes")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when this process is gone")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.with_parent is not None:
        threading.Thread(target=_end_with, args=(options.with_parent, os.getppid()), daemon=True).start()
    return run_job_file(options.job) if options.jobs is None else _run_jobs(options.jobs)


def _run_jobs(descriptor: int) -> int:
    resident.stays = True
    with open(descriptor) as jobs:
        for line in jobs:
            given = json.loads(line)
            with open(given["log"], "ab") as log:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                    os.dup2(log.fileno(), stream.fileno())
            code = run_job_file(Path(given["job"]))
            if code:
                return code
    return 0


def run_job_file(file: Path) -> int:
    """Train as the file says; return the exit code."""
    try:
        job = Job.model_validate_json(file.read_text())
    except OSError as error:
        logger.error("%s: cannot read the job: %s", file, error.strerror)
        return EXIT_UNTRAINABLE
    except ValidationError as error:
        logger.error("%s: %s", file, explain_validation(error, Job))
        return EXIT_UNTRAINABLE
    job.progress.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(job.progress)
    try:
        result = run_job(job, progress)
        logger.info("trained %s on %d sequences: %s", job.output, result["sequences"], result["seconds"])
        if resident.stays:
            progress.write({"done": True})
            resident.finish()
            progress.write({"kept": True})
    except TrainingError as error:
        logger.error("%s", error, exc_info=error.__cause__)
        progress.fail(str(error))
        return EXIT_UNTRAINABLE
    except Exception as error:
        if _is_out_of_memory(error):
            logger.exception("out of memory")
            progress.fail(f"{(str(error) or repr(error)).splitlines()[0]}: {LESS_MEMORY}")
            return EXIT_UNTRAINABLE
        if "WORLD_SIZE" in os.environ:  # the log ends with the launcher's own words, not with this rank's
            progress.fail(traceback.format_exc())
        logger.exception("a fault of the trainer")
        return 1
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class of its own for devices; of its allocator on CPUs there is the text alone.
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
    )


def _end_with(flow: int, parent: int) -> None:
    """End the process once flow or parent is gone: it would train on for nobody, beside the one that resumes the epoch.

    `parent` is the flow itself or, for several processes, the launcher in between.
    """
    with contextlib.suppress(ProcessLookupError):
        while os.getppid() == parent:
            os.kill(flow, 0)
            time.sleep(1)
    os._exit(1)


def leave(code: int) -> NoReturn:
    """End the process with an exit code; all is written and synced by then.

    Python's own end would take torch apart module by module, for two seconds. With several ranks it could abort: gloo's
    threads still hold tensors then, and want the interpreter's lock to release them
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    logging.shutdown()
    if code == 0 and "WORLD_SIZE" in os.environ:  # after an error the others may wait for this rank for ever
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
