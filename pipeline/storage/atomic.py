"""Write an object so that readers see it whole or not at all."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

import fsspec

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import absolute_uri, is_local, without_credentials
from wordsworth.pipeline.storage.refusals import BUSY, UNREACHABLE, explanation, refusal_of
from wordsworth.pipeline.storage.streams import with_retries

# Error numbers of file systems that have no hard links: FUSE, SMB, exFAT.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
# Error numbers of file systems that cannot sync a folder.
NO_SYNC = (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
# Errors that a person can put right, by error number: what is wrong, and what to do.
REFUSALS = {
    errno.ENOSPC: ("no space is left", "make room"),
    errno.EDQUOT: ("the quota is used up", "make room"),
    errno.EROFS: ("the file system is read-only", "make it writable or choose another place"),
    errno.EACCES: ("permission denied", "get the right to write there or choose another place"),
    errno.EPERM: ("not permitted", "get the right to write there or choose another place"),
    errno.ENOENT: ("the bucket does not exist", "create it or choose another place"),
}
# Error numbers of the exceptions that some stores' clients raise without a number.
NUMBERS = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT}


def put_if_absent(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Write an object, whole and at once, unless there is one already.

    A local file is written under a temporary name, synced and linked: a link fails where the name exists.
    On an object store the write is one conditional PUT. A store without conditions gets a plain PUT, which is
    as good where the bytes follow from the name.

    Returns:
        True if the object was written; False if there is one already, which may have other bytes.

    Raises:
        UserError: there is no room, no bucket, or no right to write.
    """
    with _user_errors(fs, path):
        if is_local(fs):
            return _link_if_absent(path, data)
        return with_retries(lambda: _conditional_put(fs, path, bytes(data)))


def overwrite(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write an object, whole and at once, in place of the one that may be there.

    Raises:
        UserError: there is no room, no bucket, or no right to write.
    """
    with _user_errors(fs, path):
        if not is_local(fs):
            with_retries(lambda: fs.pipe_file(path, bytes(data)))
            return
        with _temporary_file(path, data) as temporary:
            os.replace(temporary, path)


@contextlib.contextmanager
def _user_errors(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Raise a UserError in place of an OSError that a person can put right."""
    try:
        yield
    except OSError as error:
        reason = _reason(fs, error)
        if reason is None:
            raise
        where = without_credentials(absolute_uri(fs, path))
        raise UserError(
            f"cannot write {where}: {reason}, then run the same command again: what is done is kept"
        ) from error


def _reason(fs: fsspec.AbstractFileSystem, error: OSError) -> str | None:
    """Say what is wrong and what to do; None for an error that may pass, or that nobody foresaw."""
    refusal = None if is_local(fs) else refusal_of(error)
    if refusal in (BUSY, UNREACHABLE):
        return None
    if refusal:
        return explanation(error)
    number = error.errno if error.errno in REFUSALS else NUMBERS.get(type(error))
    if number not in REFUSALS or (number == errno.ENOENT and is_local(fs)):
        return None
    problem, remedy = REFUSALS[number]
    return f"{problem}: {remedy}"


# ---- object stores --------------------------------------------------------------------------------------


def _conditional_put(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
        return True
    except FileExistsError:
        fs.invalidate_cache()  # a listing from before the write would hide the object
        return False
    except (NotImplementedError, TypeError):
        pass  # the client knows no conditions
    except Exception as error:
        # A lost precondition is a plain OSError in some clients, and so is an answer that got lost on its
        # way. If there is no object, the error is a conflict with another writer (409) or one that may pass:
        # `with_retries` calls again.
        fs.invalidate_cache()
        if fs.exists(path):
            return False
        if getattr(error, "errno", None) != errno.ENOSYS:  # ENOSYS is 501: the store knows no conditions
            raise
    fs.pipe_file(path, data)
    return True


# ---- local files ----------------------------------------------------------------------------------------


def _link_if_absent(path: str, data: bytes) -> bool:
    if os.path.exists(path):
        return False
    with _temporary_file(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _rename_if_absent(temporary, path)
    return True


def _rename_if_absent(temporary: str, path: str) -> bool:
    """Rename a file unless the name is taken, on a file system without hard links.

    The file is whole, but the second of two writers at the same moment wins, as with a plain PUT. For a unit
    this is as good as a link, because its rows follow from its name. The plan and the pages of the listing
    follow from the command and the source. Two jobs that begin in the same instant, with other machines or
    another state of the source, could each use its own plan or pages for a moment. `wordsworth verify`
    finds the consequences (`other_run`, `foreign_file`).
    """
    if os.path.exists(path):
        return False
    os.replace(temporary, path)
    return True


@contextlib.contextmanager
def _temporary_file(path: str, data: bytes) -> Iterator[str]:
    """Write a synced temporary file beside `path`, yield its name, and sync the folder after the block."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # Spark, pyarrow and Hive skip names with a leading underscore, should a crash leave the file behind.
    temporary = os.path.join(folder, f"_tmp-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(
            OSError
        ):  # the file was renamed, or the disk became read-only and the block failed
            os.unlink(temporary)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the new name in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)
