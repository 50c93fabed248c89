"""
Structured logs: one JSON object a line on standard error, so that standard output stays free for what a command prints.

Nothing logs a payload. Whoever has them adds `topic`, `partition`, `offset`, `event_offset` and `trace_id` to the line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from driftline.imports import hidden

with hidden("rich"):  # for tracebacks in colour: ours are JSON
    import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("driftline")

# Libraries that tell at INFO what an operator cannot use.
QUIET = ("aiokafka", "faust", "mode", "kafka", "asyncio", "httpx", "uvicorn.access")


def set_up(level: str = "info", **bound: Any) -> None:
    """
    Send every log of this process to standard error as JSON; `bound` (service, pipeline) goes on every line of ours.

    Call once, from the command that starts the process; a library never does.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer(sort_keys=True)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(**bound)
