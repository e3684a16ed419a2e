"""Prefect's logs of a run, without the traceback of an error that the user can mend: one line says what is wrong."""

from __future__ import annotations

import logging

from lightning_core.errors import in_words

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


def without_tracebacks(record: logging.LogRecord) -> bool:
    """Put the words of a mendable error in the record's place, marked as `mendable`. Always true: nothing is dropped."""
    error = record.exc_info[1] if record.exc_info else None
    said = None if error is None else in_words(error)
    if said is not None:
        record.msg, record.args, record.exc_info, record.exc_text = said, None, None, None
        record.mendable = True
    return True


def install() -> None:
    """Before a run's first log; a second call changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(without_tracebacks)
