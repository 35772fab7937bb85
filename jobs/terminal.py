"""Print on a terminal. What comes from data is only text there: no markup, no emoji, no escape sequence.

What a command says on stderr is a line for a person, or with --log-format json one JSON object a line.
"""

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, Any, ClassVar, Literal

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.markup import escape
from rich.text import Text

from wordsworth.pipeline.errors import shown

LogFormat = Literal["text", "json"]
COPIED = ("predictions", "read", "see errors", "next", "see it")  # names of facts: a path or a command
LEAST_COLUMNS = 20  # of a text on a screen, however narrow that is
WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
TIME_OF_DAY = re.compile(r"^\d\d:\d\d:\d\d ")  # at the begin of a line, where JSON has a field for it


class Terminal(Console):
    """Print lines and tables on stdout or stderr; in a file or a pipe a line stays one line.

    Every string passes `shown` line by line, also the cells of tables: whoever forgets `data_text` loses the
    brackets of a name, and sends no command to the terminal.

    Attributes:
        log_format: how all lines on stderr are written.
        has_dated: whether a line with the time of day was printed: then the last line has it too.
    """

    log_format: ClassVar[LogFormat] = "text"
    has_dated: ClassVar[bool] = False

    def __init__(self, *, stderr: bool = False, dated: bool = False, **options: Any):
        """Make a terminal.

        Args:
            stderr: print on stderr, not on stdout.
            dated: begin lines with the time of day, except on a screen: for commands that take hours.
            options: of rich's console.
        """
        self.is_json = stderr and Terminal.log_format == "json"
        if self.is_json:
            options |= {"force_terminal": False, "color_system": None}
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, emoji=False, **options)
        self.is_dated = dated and not self.is_json

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text with its markup, and without control characters other than line feeds."""
        return super().render_str("\n".join(map(shown, text.split("\n"))), **options)

    def print(self, *objects: Any, level: str = "info", event: str = "note", **options: Any) -> None:
        """Print objects; as JSON, each of their lines becomes an object of its own.

        Args:
            objects: texts with markup, tables.
            level: "info", "warning" or "error", for JSON.
            event: what the line is about, for JSON.
            options: as rich has them.
        """
        if self.is_json:
            with self.capture() as captured:
                super().print(*objects, **options)
            for line in captured.get().splitlines():
                self._write(line.strip(), level, event, {})
            return
        if self.is_dated and not self.is_terminal:
            Terminal.has_dated = True
            objects = (f"{datetime.now():%H:%M:%S}", *objects)
        super().print(*objects, **options)

    def print_facts(self, facts: dict[str, str]) -> None:
        """Print a line for each name and its value; on a screen a long sentence goes on below itself.

        A long path or command is never cut, so that it can be copied.
        """
        width = max(map(len, facts))
        for name, value in facts.items():
            lines = [value]
            if self.is_terminal and name not in COPIED:
                lines = textwrap.wrap(value, max(LEAST_COLUMNS, self.width - width - 3), **WHOLE_WORDS)
            for number, line in enumerate(lines or [""]):
                self.print(f" {'' if number else name:<{width}}  {data_text(line)}")

    def say(self, text: str, level: str = "info", event: str = "note", **fields: Any) -> None:
        """Print one line that may hold names from data.

        Args:
            text: the line.
            level, event: as for `print`.
            fields: figures that JSON has beside the line.
        """
        if self.is_json:
            self._write(shown(text), level, event, fields)
        elif self.is_terminal and len(text) > self.width:
            for line in textwrap.wrap(text, max(LEAST_COLUMNS, self.width), **WHOLE_WORDS):
                self.print(data_text(line))
        else:
            self.print(data_text(text))

    def _write(self, message: str, level: str, event: str, fields: dict[str, Any]) -> None:
        if message:
            self.file.write(json_line(message, level, event, fields))
            self.file.flush()


def json_line(message: str, level: str, event: str, fields: dict[str, Any]) -> str:
    """Return a line of the log: one JSON object, with the time in UTC first."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"time": moment, "level": level, "event": event, "message": message} | fields
    return json.dumps(told, default=str) + "\n"


def data_text(text: str) -> str:
    """Return a text from data as a part of a string with markup, or as the cell of a table."""
    return escape(shown(text))


def own_stderr() -> IO[str] | None:
    """Return stderr as a file of its own, or None where stderr is not that of this process.

    While Ray starts, what anything writes to descriptor 2 is thrown away; a display goes on meanwhile.
    """
    stream = sys.__stderr__
    shown_on = sys.stderr.stream if isinstance(sys.stderr, _JsonLines) else sys.stderr
    if isinstance(shown_on, FileProxy):  # while another display has a bar, rich stands before stderr
        shown_on = shown_on.rich_proxied_file
    if stream is None or shown_on is not stream:
        return None
    with contextlib.suppress(OSError, ValueError):
        copy = os.dup(stream.fileno())
        return os.fdopen(copy, "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
    return None


def asked_log_format(arguments: list[str]) -> LogFormat:
    """Return the format that --log-format asks for, before anything else of the arguments is understood."""
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--":
            break
        if name == "--log-format":
            value = value or "".join(arguments[number + 1 : number + 2])
            return "json" if value == "json" else "text"
    return "text"


@contextlib.contextmanager
def logging_as(log_format: LogFormat) -> Iterator[None]:
    """Write everything that Python code puts on stderr in a format, inside the block."""
    before, stream = Terminal.log_format, sys.stderr
    Terminal.log_format, Terminal.has_dated = log_format, False
    if log_format == "json":
        sys.stderr = _JsonLines(stream)
    try:
        yield
    finally:
        Terminal.log_format = before
        if isinstance(sys.stderr, _JsonLines):
            sys.stderr.close_line()
            sys.stderr = stream


class _JsonLines:
    """Make lines of JSON of what others write on stderr: warnings, messages of Ray and of libraries."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.line = ""

    def write(self, text: str) -> int:
        """Write the lines that are whole; a line that is JSON of ours stays as it is."""
        *whole, self.line = (self.line + text).split("\n")
        for line in whole:
            self._put(line)
        return len(text)

    def close_line(self) -> None:
        """Write what is left of a line."""
        self._put(self.line)
        self.line = ""

    def _put(self, line: str) -> None:
        if line.startswith('{"time": "'):
            self.stream.write(line + "\n")
        elif line.strip():
            level = "warning" if "warning" in line.lower() else "info"
            message = TIME_OF_DAY.sub("", line.strip())
            self.stream.write(json_line(shown(message), level, "output", {}))
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
