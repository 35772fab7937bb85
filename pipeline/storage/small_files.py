"""Read files that are small by nature, such as lists of names: a larger one is a mistake or does harm."""

import fsspec

from wordsworth.pipeline.errors import UserError

MAX_BYTES = 64 << 20  # a million names of classes have 20 MB


def read_small(fs: fsspec.AbstractFileSystem, path: str, called: str) -> bytes:
    """Return the content of a small file.

    Args:
        fs: the file system.
        path: of the file.
        called: the file in messages.

    Raises:
        UserError: the file is larger than any file of its kind.
        OSError: it cannot be read.
    """
    with fs.open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{called} has more than the {MAX_BYTES:,} bytes that are read of such a file", 2)
    return content


def read_small_text(fs: fsspec.AbstractFileSystem, path: str, called: str) -> str:
    """Return the content of a small file of text in UTF-8, with a byte order mark or without.

    Raises:
        UserError: the file is no such text, or larger than any file of its kind.
        OSError: it cannot be read.
    """
    try:
        return read_small(fs, path, called).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{called} is not UTF-8: {error.reason} at byte {error.start}", exit_code=2
        ) from error
