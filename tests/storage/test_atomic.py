"""atomic: an object appears whole or not at all, and a refusal is one line."""

import errno
import io
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.storage.test_streams import PayloadError
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage import atomic
from wordsworth.pipeline.storage.atomic import overwrite, put_if_absent
from wordsworth.pipeline.storage.filesystem import open_filesystem

DATA = bytes(range(97)) * 3


def test_a_put_on_a_disk_appears_whole_and_a_second_one_changes_nothing(tmp_path):
    path = tmp_path / "deep" / "er" / "object"
    fs = LocalFileSystem()
    assert put_if_absent(fs, str(path), DATA) is True
    assert put_if_absent(fs, str(path), b"other") is False
    assert path.read_bytes() == DATA and os.listdir(path.parent) == ["object"]


def test_replace_puts_the_new_bytes_in_place_of_the_old(tmp_path, bucket):
    for fs, path in ((LocalFileSystem(), f"{tmp_path}/object"), open_filesystem("s3://b/object")):
        overwrite(fs, path, b"old")
        overwrite(fs, path, DATA)
        assert fs.cat_file(path) == DATA
    assert os.listdir(tmp_path) == ["object"]


def test_eight_racing_writers_give_one_winner_whose_bytes_stay(tmp_path):
    fs = LocalFileSystem()
    for number in range(20):
        path, start = tmp_path / f"{number}", threading.Barrier(8)
        won: list[int] = []

        def write(writer: int, path=path, start=start, won=won):
            start.wait()
            if put_if_absent(fs, str(path), bytes([writer]) * 100_000):
                won.append(writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and path.read_bytes() == bytes(won) * 100_000
    assert len(os.listdir(tmp_path)) == 20  # and no leftovers


KILLED = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from wordsworth.pipeline.storage import atomic
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[1], kill)
getattr(atomic, sys.argv[2])(LocalFileSystem(), sys.argv[3], b"x" * 100_000)
"""


@pytest.mark.parametrize(
    ("moment", "writer"), [("fsync", "put_if_absent"), ("link", "put_if_absent"), ("replace", "overwrite")]
)
def test_a_writer_killed_before_its_commit_leaves_nothing_under_the_final_name(moment, writer, tmp_path):
    path = tmp_path / "object.parquet"
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, writer, str(path)])
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = os.listdir(tmp_path)  # it was writing when it died, or this test would show nothing
    assert leftover.startswith("_tmp-") and not leftover.endswith(".parquet")
    assert put_if_absent(LocalFileSystem(), str(path), DATA) and path.read_bytes() == DATA


REFUSED_WRITES = [
    (errno.ENOSPC, "no space is left: make room"),
    (errno.EDQUOT, "the quota is used up: make room"),
    (errno.EROFS, "the file system is read-only: make it writable or choose another place"),
    (errno.EACCES, "permission denied: get the right to write there or choose another place"),
]


class FullFile(io.FileIO):
    """A file that takes half of what it is given, as on a disk that is full."""

    number = errno.ENOSPC

    def write(self, data):
        super().write(data[: len(data) // 2])
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("writer", [put_if_absent, overwrite])
@pytest.mark.parametrize(("number", "said"), REFUSED_WRITES, ids=lambda value: errno.errorcode.get(value, ""))
@pytest.mark.parametrize("call", ["makedirs", "write", "fsync", "link"])
def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, call, number, said, writer
):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    if call == "write":
        monkeypatch.setattr(FullFile, "number", number)
        monkeypatch.setattr("builtins.open", lambda path, mode: FullFile(path, mode.replace("b", "")))
    else:
        monkeypatch.setattr(atomic.os, "replace" if (call, writer) == ("link", overwrite) else call, refuse)
    with pytest.raises(UserError) as refusal:
        writer(LocalFileSystem(), str(tmp_path / "object"), DATA)
    assert os.listdir(tmp_path) == []
    assert (
        str(refusal.value)
        == f"cannot write {tmp_path}/object: {said}, then run the same command again: what is done is kept"
    )
    monkeypatch.undo()
    writer(LocalFileSystem(), str(tmp_path / "object"), DATA)
    assert (tmp_path / "object").read_bytes() == DATA


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_gets_a_rename_into_place(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "link", refuse)
    fs, path = LocalFileSystem(), tmp_path / "object"
    assert put_if_absent(fs, str(path), DATA) is True
    assert put_if_absent(fs, str(path), b"other") is False
    assert path.read_bytes() == DATA and os.listdir(tmp_path) == ["object"]
    answers = iter([False, True])
    monkeypatch.setattr(atomic.os.path, "exists", lambda name: name != str(path) or next(answers))
    assert put_if_absent(fs, str(path), b"other") is False, (
        "another one was faster, between the first look and the rename"
    )
    assert path.read_bytes() == DATA and os.listdir(tmp_path) == ["object"]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    assert put_if_absent(LocalFileSystem(), str(tmp_path / "object"), DATA) is True


def test_a_put_on_a_store_is_conditional(bucket):
    fs, path = open_filesystem("s3://b/object")
    assert put_if_absent(fs, path, DATA) is True
    assert put_if_absent(fs, path, b"other") is False
    assert bucket.objects == {"b/object": DATA}


def test_a_put_whose_acknowledgement_is_lost_finds_its_object_whole(bucket):
    bucket.late = True
    fs, path = open_filesystem("s3://b/object")
    assert put_if_absent(fs, path, DATA) is False  # the caller reads it back and sees that it is its own
    assert bucket.objects == {"b/object": DATA}


def test_a_put_that_failed_and_left_nothing_is_tried_again_and_then_raises(bucket, monkeypatch, waits):
    def lost(self, path, value, **kwargs):
        raise OSError("503 SlowDown")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "pipe_file", lost)
        with pytest.raises(OSError, match="SlowDown"):
            put_if_absent(*open_filesystem("s3://b/object"), DATA)
    assert len(waits) == 4

    real, left = (
        bucket.pipe_file,
        [OSError(errno.EIO, "409 ConditionalRequestConflict"), PayloadError("reset")],
    )

    def put(self, path, value, **kwargs):
        if left:
            raise left.pop()
        real(self, path, value, **kwargs)

    monkeypatch.setattr(bucket, "pipe_file", put)
    assert put_if_absent(*open_filesystem("s3://b/object"), DATA) is True
    assert bucket.objects == {"b/object": DATA} and len(waits) == 6


def test_a_store_that_answers_a_condition_with_not_implemented_gets_a_plain_put(bucket, monkeypatch):
    real = bucket.pipe_file

    def put(self, path, value, mode="overwrite", **kwargs):
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        real(self, path, value, **kwargs)

    monkeypatch.setattr(bucket, "pipe_file", put)
    assert put_if_absent(*open_filesystem("s3://b/object"), DATA) is True
    assert bucket.objects == {"b/object": DATA}


@pytest.mark.parametrize(
    ("error", "said"),
    [(PermissionError, "permission denied"), (FileNotFoundError, "the bucket does not exist")],
)
def test_a_store_that_refuses_is_one_line_and_is_not_asked_again(bucket, monkeypatch, waits, error, said):
    def refuse(self, path, value, **kwargs):
        raise error("The answer of the store")

    monkeypatch.setattr(bucket, "pipe_file", refuse)
    for writer in (put_if_absent, overwrite):
        with pytest.raises(
            UserError, match=f"cannot write s3://b/object: {said}: .*, then run the same command again"
        ):
            writer(*open_filesystem("s3://b/object"), DATA)
    assert waits == []


def test_a_store_without_conditions_gets_a_plain_put(bucket):
    bucket.conditional = False
    assert put_if_absent(*open_filesystem("s3://b/object"), DATA) is True
    assert bucket.objects == {"b/object": DATA}
