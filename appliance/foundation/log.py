"""Structured logs: constant event names, no patient data, JSON for journald.

An identifier of a study or patient never goes into a log; pack ids, sequences and counts do.
"""

import logging
import os
import sys
from typing import Any

import structlog


def configure(*, json_lines: bool, level: str = "info") -> None:
    """Send this process's logs to standard error, as JSON lines or for a terminal."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # pynetdicom and botocore log identifiers and headers at debug and info.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)


def get(name: str) -> Any:
    """Return a logger bound to the component's name."""
    return structlog.get_logger(component=name)


def where(error: BaseException) -> str:
    """Return an unexpected error's type and place, for a log: its text may quote what it met."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return type(error).__name__
    code = last.tb_frame.f_code
    return f"{type(error).__name__} at {os.path.basename(code.co_filename)}:{last.tb_lineno}"
