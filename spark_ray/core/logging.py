"""Structured logs, quiet by default: warnings for people on a terminal, JSON lines elsewhere."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import structlog


def configure_logging(
    level: str | None = None, ids: Callable[[], Mapping[str, str]] | None = None
) -> None:
    """Send our logs to standard error. `SPARK_RAY_LOG_LEVEL` (default WARNING) sets how much.

    `ids` is asked at every line for what the line belongs to, such as a job or a request.
    """
    name = (level or os.environ.get("SPARK_RAY_LOG_LEVEL") or "WARNING").upper()

    def add_ids(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**ids(), **event} if ids is not None else event

    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    ours = logging.getLogger("spark_ray")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(logging.getLevelNamesMapping().get(name, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
