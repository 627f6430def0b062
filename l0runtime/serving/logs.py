"""What does a server write about itself? One JSON object a line, on stderr: time, level, event, and its facts."""

from __future__ import annotations

import datetime
import sys
import threading
from typing import Any, TextIO

import orjson


class EventLog:
    """Writes events.

    Args:
        stream: stderr at the time of writing if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def info(self, event: str, **facts: Any) -> None:
        """Something that went as it should."""
        self._write("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        """Something that an operator should know."""
        self._write("warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        """A fault of the server."""
        self._write("error", event, facts)

    def _write(self, level: str, event: str, facts: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = orjson.dumps({"time": now, "level": level, "event": event, **facts}, default=str).decode()
        with self._lock:
            print(line, file=self._stream or sys.stderr, flush=True)
