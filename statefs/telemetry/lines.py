"""The form of the log: lines for people, or one JSON object for each."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

import msgspec

from statefs.clock import iso_time
from statefs.units import printable

EVENT_FIELD: Final = "event_document"
"""Of a log record: the event that it tells of."""
JSON: Final = "json"
TEXT: Final = "text"


class TextLines(logging.Formatter):
    """Writes each record for people: its time in UTC, its message, which may tell names that
    anybody gave a file, as one line; a traceback comes below it.
    """

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line."""
        record.message = printable(record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """Writes each record of the log as one line of JSON; of an event all that it says."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document = {
            "time": iso_time(int(record.created * 1e6) * 1000),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        event = getattr(record, EVENT_FIELD, None)
        if event is not None:
            document |= msgspec.to_builtins(event)
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


FORMS: Final[dict[str, type[logging.Formatter]]] = {TEXT: TextLines, JSON: JsonLines}
"""By what `log_format` of statefs.toml says."""


def begin_log() -> None:
    """Have this process write its log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def choose_format(form: str) -> None:
    """Have the lines that follow be written in a form, a key of FORMS."""
    for handler in logging.getLogger().handlers:
        if type(handler.formatter) in FORMS.values() and type(handler.formatter) is not FORMS[form]:
            handler.setFormatter(FORMS[form]())
