"""Hold what came of fetching an image again, and say why one did not come."""

from typing import NamedTuple

import fsspec

from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.sources.lost_objects import loss_of
from wordsworth.pipeline.sources.samples import ShardChanged
from wordsworth.pipeline.storage.refusals import explanation
from wordsworth.pipeline.storage.whole_object import TooLarge

MAX_REASON = 300  # characters of a reason
CHANGED = "changed: another object is there than when the run was made"


class Fetched(NamedTuple):
    """Hold what was fetched for a row.

    Attributes:
        row_number: place of the row in the table that was given.
        data: the encoded image; None where it could not be fetched.
        reason: why there is none, in one line that may hold names from data; None beside data.
    """

    row_number: int
    data: bytes | None
    reason: str | None


def reason_of(error: Exception, fs: fsspec.AbstractFileSystem | None, path: str) -> str:
    """Return why an image did not come, in one line without secrets.

    Args:
        error: what was raised.
        fs: file system that was asked; None where there is none.
        path: what it was asked for.
    """
    if isinstance(error, ShardChanged):
        return CHANGED
    if isinstance(error, TooLarge):
        return f"too_many_bytes: {error}"
    loss = loss_of(error, fs, path) if isinstance(error, OSError) and fs is not None else None
    if loss:
        return f"{loss.code}: {loss.detail}"
    told = explanation(error) or str(error) or type(error).__name__
    return " ".join(without_secrets(told).split())[:MAX_REASON]
