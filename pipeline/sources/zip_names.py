"""Say how a member of a zip archive is called."""

import zlib

_UTF_8 = 0x800  # flag of an entry: the name is UTF-8
_UNICODE_NAME = 0x7075  # number of the extra field with the name in UTF-8, as Info-ZIP writes it


def member_name(name: bytes, flags: int, extra: bytes) -> str:
    r"""Return the name of a member as Python's zipfile gives it from version 3.13 on.

    That is the name of the extra field, if it is about this name; else UTF-8, where the entry says so; else
    cp437, in which every byte is a character. Bytes that are no UTF-8 stand as \xNN.
    """
    field = fields_of(extra).get(_UNICODE_NAME, b"") if _UNICODE_NAME.to_bytes(2, "little") in extra else b""
    if field[:1] == b"\1" and field[1:5] == zlib.crc32(name).to_bytes(4, "little"):
        return field[5:].decode("utf-8", "backslashreplace")
    if flags & _UTF_8:
        return name.decode("utf-8", "backslashreplace")
    return name.decode("cp437")


def fields_of(extra: bytes) -> dict[int, bytes]:
    """Return the extra fields of an entry by their numbers; the first of each number counts."""
    found: dict[int, bytes] = {}
    while len(extra) >= 4:
        number = int.from_bytes(extra[:2], "little")
        length = int.from_bytes(extra[2:4], "little")
        found.setdefault(number, extra[4 : 4 + length])
        extra = extra[4 + length :]
    return found
