"""Ask a store again for a loose image whose row says that it is lost, or that is listed as empty."""

import errno

from wordsworth.pipeline.storage.filesystem import StorageOptions
from wordsworth.pipeline.verification.recount_objects import ListedObject

LOST = ("not_found", "forbidden", "archived")
ASKED_AGAIN = 100  # images of one page, at most: an archive may hold millions


def error_now(uri: str, size: int, options: StorageOptions | None) -> str | None:
    """Return the error that an image's row should have; None for an image that can be read.

    Raises:
        OSError: the store fails.
    """
    try:
        with ListedObject(uri, options).open(size) as file:
            file.read(1)
    except PermissionError as error:
        return "archived" if "InvalidObjectState" in str(error.__cause__) else "forbidden"
    except OSError as error:
        is_path = error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
        if not is_path and not isinstance(error, FileNotFoundError):
            raise
        return "not_found"
    return None
