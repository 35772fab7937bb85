"""Look whether an output on this disk can become a folder, before a command begins its work."""

import errno
import os
import tempfile
from pathlib import Path

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.atomic import REFUSALS
from wordsworth.pipeline.storage.filesystem import StorageOptions, is_local, open_filesystem


def refuse_no_folder(output: str, options: StorageOptions | None = None) -> None:
    """Refuse an output on this disk that is a file, lies below one, or lies where nothing can be written.

    A folder that is there is not tried: a finished run may lie where nobody writes any more.

    Raises:
        UserError: no folder can be there.
    """
    fs, path = open_filesystem(output, options)
    if not is_local(fs):
        return
    above = Path(path)
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        where = "" if above == Path(path) else f": {above}"
        kind = "is a file" if above.is_file() else "is no folder"
        raise UserError(f"--output {output}{where} {kind}: name a folder", exit_code=2)
    if above == Path(path):
        return
    try:
        tempfile.TemporaryDirectory(dir=above).cleanup()
    except OSError as error:
        said = (error.strerror or type(error).__name__).lower()
        problem, remedy = said, "choose another place"
        if error.errno in REFUSALS and error.errno != errno.ENOENT:  # which is for buckets
            problem, remedy = REFUSALS[error.errno]
        raise UserError(
            f"--output {output}: no folder can be made in {above}: {problem}: {remedy}"
        ) from error
