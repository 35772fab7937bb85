"""Read a JSON file: an array of objects, element by element, or an object a line."""

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from wordsworth.pipeline.sources.samples import UnfitTable
from wordsworth.pipeline.sources.table_records import Record, json_records
from wordsworth.pipeline.sources.text_lines import MAX_LINE, encoding_of
from wordsworth.pipeline.sources.text_object import TableCut, TextObject

CHUNK = 1 << 20  # bytes read at once
_SPACES = " \t\r\n"
_DECODER = json.JSONDecoder()


def json_file_records(open_text: Callable[[], TextObject], path: str) -> Iterator[Record]:
    """Yield the records of a .json file: of an array its elements, else the objects on its lines.

    Args:
        open_text: opens the file at its first byte
        path: its name, for messages

    Raises:
        UnfitTable: the file is neither.
        TableCut: the array breaks off, or is damaged: JSON says nowhere where to go on.
        OSError: the store fails.
    """
    with open_text() as file:
        text = _Text(file)
        text.skip_space()
        begin = text.peek()
    if begin == "[":
        return array_records(open_text())
    return _lines_or_fault(open_text, path)


def _lines_or_fault(open_text: Callable[[], TextObject], path: str) -> Iterator[Record]:
    """Yield the objects on the lines of a file, if its first record is one."""
    for number, record in enumerate(json_records(open_text())):
        if number == 0 and record.values is None:
            raise UnfitTable(
                f"{path} is neither an array of objects nor an object a line: "
                "jq -c '.images[]' makes lines of a list that stands inside"
            )
        yield record


def array_records(file: TextObject) -> Iterator[Record]:
    """Yield the elements of an array. One counts when the comma or the bracket behind it was seen."""
    with file:
        text = _Text(file)
        text.skip_space()
        text.take("[")
        text.skip_space()
        more = text.peek() != "]"
        while more:
            values, bad = text.element()
            more = text.peek() == ","
            if not more and text.peek() != "]":
                text.fail("the JSON array is damaged")
            yield Record(values, file.consumed(text.position), bad)
            if more:
                text.take(",")
                text.skip_space()
        text.take("]")
        text.check_end()


class _Text:
    """Read the text of a file, with a look ahead.

    Bytes that are no text become halves of surrogate pairs, so that they spoil their element alone.

    Attributes:
        position: bytes before the next character
    """

    def __init__(self, file: TextObject):
        self._file = file
        head = b""
        while len(head) < 4 and (more := file.read(4 - len(head))):
            head += more
        self._encoding, self.position = encoding_of(head)
        self._errors = "surrogateescape" if self._encoding == "utf-8" else "surrogatepass"
        self._decoder = codecs.getincrementaldecoder(self._encoding)(self._errors)
        self._text = self._decoder.decode(head[self.position :])
        self._at = 0  # place of the next character in the text
        self._cut: TableCut | None = None
        self._ended = False

    def peek(self) -> str:
        """Return the next character; none at the end."""
        while self._at == len(self._text) and self._grow():
            pass
        return self._text[self._at : self._at + 1]

    def skip_space(self) -> None:
        """Read white space."""
        while self.peek() and self.peek() in _SPACES:
            end = self._at + 1
            while end < len(self._text) and self._text[end] in _SPACES:
                end += 1
            self._advance(end)

    def take(self, character: str) -> None:
        """Read this character."""
        if self.peek() != character:
            self.fail(f"the JSON array lacks a {character}")
        self._advance(self._at + 1)

    def element(self) -> tuple[dict[str, Any] | None, str | None]:
        """Read a value and the white space behind it; return an object, or why there is none, in words."""
        value, end = self._value()
        element = self._text[self._at : end]
        try:
            size = len(element.encode(self._encoding))
            bad = None if isinstance(value, dict) else "a JSON value that is no object"
        except UnicodeEncodeError:
            size = len(element.encode(self._encoding, self._errors))
            bad = f"not {self._encoding[:6].upper()}"
        if size > MAX_LINE:
            self.fail(f"an element has more than {MAX_LINE} bytes")
        self._at = end
        self.position += size
        self.skip_space()
        return (None if bad else value), bad

    def _value(self) -> tuple[Any, int]:
        """Return the value that begins at the next character, and its end in the text."""
        while True:
            reason = "ends early"
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if self._text[end:].strip(_SPACES):  # a number without a neighbour may go on
                    return value, end
            except (ValueError, RecursionError) as error:
                reason = f"is damaged: {error}"
            if len(self._text) - self._at > MAX_LINE or not self._grow():
                self.fail(f"the JSON array {reason}")

    def check_end(self) -> None:
        """Raise TableCut if there is more than white space."""
        self.skip_space()
        if self.peek() or self._cut:
            self.fail("text stands behind the JSON array")

    def fail(self, reason: str) -> NoReturn:
        """Raise TableCut, for the damage of the compressed data where these are damaged."""
        raise self._cut or TableCut(reason)

    def _advance(self, end: int) -> None:
        self.position += len(self._text[self._at : end].encode(self._encoding, self._errors))
        self._at = end

    def _grow(self) -> bool:
        """Read at least as much as is held; return whether there was more."""
        if self._ended:
            return False
        self._text = self._text[self._at :]
        self._at = 0
        wanted = len(self._text) + CHUNK
        while not self._ended and len(self._text) < wanted:
            try:
                data = self._file.read(CHUNK)
            except TableCut as cut:
                self._cut = cut
                data = b""
            self._ended = not data
            try:
                self._text += self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError:  # half a character at the end
                self._text += "\ud800"
        return True
