"""session_folder: what a local Ray writes is this user's alone, and is gone with the session."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wordsworth.pipeline.cluster.session_folder import RAY_TMPDIR, session_folder
from wordsworth.pipeline.errors import UserError

LIVING = """
import time
from wordsworth.pipeline.cluster.session_folder import session_folder
with session_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(RAY_TMPDIR, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def living():
    """A session of another process: the process and its folder, which looks an hour old."""
    process = subprocess.Popen([sys.executable, "-c", LIVING], stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    _age(folder)
    yield process, folder
    process.kill()
    process.wait()


def _age(folder: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_the_folder_is_for_this_user_alone_and_is_gone_afterwards(root):
    with session_folder() as folder:
        assert folder.parent == root
        assert folder.stat().st_mode & 0o777 == 0o700
        assert os.environ[RAY_TMPDIR] == str(folder)
        (folder / "ray" / "logs").mkdir(parents=True)
        (folder / "ray" / "logs" / "raylet.out").write_text("text")
    assert RAY_TMPDIR not in os.environ
    assert list(root.iterdir()) == []


def test_ray_tmpdir_of_the_user_comes_before_tmpdir_and_is_set_again(tmp_path, monkeypatch):
    monkeypatch.setenv(RAY_TMPDIR, str(tmp_path / "of-the-user"))
    with session_folder() as folder:
        assert folder.parent == tmp_path / "of-the-user"
    assert os.environ[RAY_TMPDIR] == str(tmp_path / "of-the-user")


def test_two_sessions_at_once_have_two_folders():
    with session_folder() as one:
        os.environ.pop(RAY_TMPDIR)
        with session_folder() as other:
            assert one != other and one.exists() and other.exists()
        assert one.exists() and not other.exists()
        os.environ[RAY_TMPDIR] = ""


def test_the_next_session_removes_the_folder_of_a_killed_one_and_no_living_one(living):
    process, folder = living
    with session_folder():
        assert folder.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.exists()
    with session_folder():
        assert not folder.exists()


@pytest.mark.parametrize("why", ["young", "of another user", "without a lock", "a link"])
def test_a_folder_that_may_not_be_left_over_stays(root, why, monkeypatch):
    folder = root / "wordsworth-other"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    if why == "without a lock":
        (folder / "lock").unlink()
    if why == "a link":
        (folder / "lock").unlink()
        (folder / "lock").symlink_to("elsewhere")
        (folder / "elsewhere").touch()
    if why != "young":
        _age(folder)
    if why == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with session_folder():
        assert folder.exists()


def test_a_place_without_room_for_the_folder_is_one_line_that_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(RAY_TMPDIR, str(tmp_path / "file"))
    line = (
        rf"cannot make a folder for Ray in {tmp_path}/file: .*: set RAY_TMPDIR to a folder that you can write"
    )
    with pytest.raises(UserError, match=line), session_folder():
        pytest.fail("it went on")


def test_the_folder_of_a_session_within_a_session_lies_beside_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv(RAY_TMPDIR, str(tmp_path))
    with session_folder() as outer, session_folder() as inner:
        assert outer.parent == inner.parent == tmp_path and outer != inner


def test_a_relative_place_is_one_for_processes_with_other_working_folders_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RAY_TMPDIR, "here")
    with session_folder() as folder:
        assert folder.parent == tmp_path / "here" and os.environ[RAY_TMPDIR] == str(folder)
