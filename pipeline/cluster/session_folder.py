"""Give a local Ray a folder of its own, which no other user can open, and remove the folder with the session.

Ray makes its session folder, with logs, sockets and spilled objects, open to every user of the machine, and
never removes it. So Ray gets a folder that only this user can enter, and everything of Ray's lies inside.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from wordsworth.pipeline.errors import UserError

RAY_TMPDIR = "RAY_TMPDIR"  # environment variable of Ray's, which the processes of a session inherit
PREFIX = "wordsworth-"  # of the folder's name
LOCK = "lock"  # file in the folder: locked as long as the process of the session lives
YOUNG_S = 60.0  # seconds: a folder of this age may not have its lock yet
REMOVAL_TRIES = 5  # Ray's last processes may write while the folder is removed
REMOVAL_PAUSE_S = 0.2  # seconds between two tries


@contextlib.contextmanager
def session_folder() -> Iterator[Path]:
    """Make a folder for a local Ray, readable for this user alone, and remove the folder after the block.

    Folders of sessions that were killed are removed too. The folder lies in RAY_TMPDIR, else in TMPDIR, else
    in the system's folder for temporary files; within the block, RAY_TMPDIR names the new folder. The folder
    of a session within a session lies beside the other one: the names of Ray's sockets are short.

    Raises:
        UserError: no folder can be made there.
    """
    before = os.environ.get(RAY_TMPDIR)
    root = Path(before or os.environ.get("TMPDIR") or tempfile.gettempdir()).absolute()
    if _is_session_folder(root):  # this process was started within a session, and inherited its RAY_TMPDIR
        root = root.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_WRONLY, 0o600)
    except OSError as error:
        raise UserError(
            f"cannot make a folder for Ray in {root}: {error.strerror}: "
            f"set {RAY_TMPDIR} to a folder that you can write"
        ) from error
    with contextlib.suppress(OSError):  # a file system without locks: a killed session's folder stays
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _remove_left_over(root)
    os.environ[RAY_TMPDIR] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[RAY_TMPDIR]
        else:
            os.environ[RAY_TMPDIR] = before
        _remove(folder)
        os.close(lock)


def _is_session_folder(folder: Path) -> bool:
    return folder.name.startswith(PREFIX) and (folder / LOCK).exists()


def _remove(folder: Path) -> None:
    for _ in range(REMOVAL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(REMOVAL_PAUSE_S)


def _remove_left_over(root: Path) -> None:
    """Remove the folders of this user's sessions that ended without removing them: killed ones."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_left_over(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: Path) -> bool:
    """Tell whether a folder is one of this user's sessions whose process is gone.

    Raises:
        OSError: the folder has no lock, or a living process has it.
    """
    about = folder.lstat()
    if about.st_uid != os.getuid() or time.time() - about.st_mtime < YOUNG_S:
        return False
    lock = os.open(folder / LOCK, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)
    return True
