"""One line per event that matters: text for people, JSON for machines. Fields never carry key material."""

from __future__ import annotations

import atexit
import json
import logging
import logging.handlers
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("krbrefresh")

MOST_LINES = 10_000  # that wait to be written
LAST_LINES_WITHIN = 1.0  # seconds
_TIME = "%Y-%m-%dT%H:%M:%S"


def event(level: int, name: str, **fields: Any) -> None:
    """Logs the event `name` with its fields; None means that a field is not known, and is left out."""
    known = {key: value for key, value in fields.items() if value is not None}
    logger.log(level, name, extra={"fields": known})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        words = [_moment(record), f"{record.levelname:<7}", record.getMessage()]
        words += [f"{key}={_plain(value)}" for key, value in fields.items()]
        return " ".join(words)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _moment(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "fields", {})}, default=str)


_formatter: logging.Formatter = _Text()


class _NeverBlocks(logging.handlers.QueueHandler):
    """Hands lines to the thread that writes them, and drops what does not fit: a log that nobody reads must not keep
    a token from being refreshed."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            pass

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def set_up(log_format: str) -> Callable[[], None]:
    """Logs to standard error in that format, `text` or `json`, until the process ends. Returns what writes the lines
    that are still waiting, for a process that ends without Python's own end."""
    use(log_format)
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(MOST_LINES)
    writer = threading.Thread(target=_write, args=(lines,), name="log", daemon=True)
    writer.start()

    def write_the_rest() -> None:
        """At the end of the process; a reader that stalls does not hold it up for ever."""
        try:
            lines.put(None, timeout=LAST_LINES_WITHIN)
        except queue.Full:
            return
        writer.join(LAST_LINES_WITHIN)

    atexit.register(write_the_rest)
    logger.handlers[:] = [_NeverBlocks(lines)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return write_the_rest


def use(log_format: str) -> None:
    """From the next line on, `text` or `json`."""
    global _formatter
    _formatter = _Json() if log_format == "json" else _Text()


def _write(lines: queue.Queue[logging.LogRecord | None]) -> None:
    while (record := lines.get()) is not None:
        line = _formatter.format(record).encode("utf-8", "backslashreplace") + b"\n"
        try:
            while line:
                line = line[os.write(2, line) :]  # past sys.stderr, whose lock the interpreter's end waits for
        except OSError:  # the reader has gone
            pass


def _moment(record: logging.LogRecord) -> str:
    return time.strftime(_TIME, time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _plain(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and not any(letter in ' "' for letter in text) else json.dumps(text)
