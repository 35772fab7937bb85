"""storage: what may be opened, objects that appear whole or not at all, and reads that survive a store's bad moments."""

import errno
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage import filesystem as storage
from wordsworth.pipeline.storage.filesystem import (
    ObjectStream,
    check_scheme,
    full_uri,
    open_filesystem,
    public,
    put_if_absent,
    replace,
    version_of,
)

DATA = bytes(range(97)) * 3


@pytest.fixture
def bucket():
    with s3_bucket() as made:
        yield made


@pytest.fixture
def waits(monkeypatch):
    """How long the retries would have waited, in seconds."""
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


# ---- what may be opened ---------------------------------------------------------------------------------------------------

REFUSED = [
    "pipe:touch {canary}",
    "PIPE:touch {canary}",
    "http://127.0.0.1:{port}/a.tar",
    "HTTPS://127.0.0.1:{port}/a.tar",
    "simplecache::http://127.0.0.1:{port}/a.tar",
    "zip://a.jpg::file://{canary}",
    "file://{canary}::http://127.0.0.1:{port}/a.tar",
    "a.jpg::zip://{canary}",
    "ssh://127.0.0.1:{port}/a.tar",
    "sftp://127.0.0.1:{port}/a.tar",
    "ftp://127.0.0.1:{port}/a.tar",
    "github://org:repo@main/a.tar",
    "reference://{canary}",
    "memory://a.tar",
    "S3://bucket/a.tar",
]


@pytest.mark.parametrize("uri", REFUSED, ids=lambda uri: uri.split("/")[0])
def test_a_scheme_that_is_not_on_the_list_is_refused_before_any_io(uri, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        canary = tmp_path / "canary"
        uri = uri.format(canary=canary, port=server.getsockname()[1])
        monkeypatch.setattr(
            fsspec.core, "url_to_fs", lambda *args, **kwargs: pytest.fail("a file system was made")
        )
        with pytest.raises(UserError) as refusal:
            open_filesystem(uri)
        assert refusal.value.exit_code == 2 and "scheme is not one of file" in str(refusal.value)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert not canary.exists()


@pytest.mark.parametrize(
    "uri", ["a/b.tar", "/a/b.tar", "file:///a", "s3://b/k", "s3a://b/k", "gs://b/k", "abfs://c/k", "hf://d/k"]
)
def test_the_schemes_on_the_list_pass(uri):
    check_scheme(uri)


def test_an_s3_url_without_its_package_names_the_extra_to_install(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"s3://bucket/a.tar: Install s3fs .*pip install 'wordsworth\[s3\]'"):
        open_filesystem("s3://key:secret@bucket/a.tar")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:canary@bucket/a.tar", "s3://bucket/a.tar"),
        ("s3://AKIA:can@ary@bucket/a.tar", "s3://bucket/a.tar"),
        ("s3://AKIA:can/ary@bucket/a.tar", "s3://bucket/a.tar"),
        ("http://host:80/a@b?c=d@e", "http://host:80/a@b?c=d@e"),
        ("http://user:canary@host:80/a?b=c#d", "http://host:80/a?b=c#d"),
        ("s3://bucket/user@home/a.tar", "s3://bucket/user@home/a.tar"),
        (
            "abfss://container@account.dfs.core.windows.net/a",
            "abfss://container@account.dfs.core.windows.net/a",
        ),
        ("abfss://user:canary@account.dfs.core.windows.net/a", "abfss://account.dfs.core.windows.net/a"),
        ("/data/a@b/c.tar", "/data/a@b/c.tar"),
    ],
)
def test_credentials_leave_a_uri_and_nothing_else_does(uri, shown):
    assert public(uri) == shown


def test_a_refusal_shows_no_credentials():
    with pytest.raises(UserError) as refusal:
        check_scheme("ftp://user:canary@host/a")
    assert "canary" not in str(refusal.value) and "ftp://host/a" in str(refusal.value)


def test_uris_are_absolute_paths_on_a_disk_and_carry_their_scheme_on_a_store(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    for uri in ("a.tar", f"file://{tmp_path}/a.tar", f"{tmp_path}/a.tar", "./a.tar"):
        assert full_uri(*open_filesystem(uri)) == f"{tmp_path}/a.tar"
    assert full_uri(*open_filesystem("s3://b/a.tar")) == "s3://b/a.tar"


@pytest.mark.parametrize(
    "info", [{"ETag": '"abc"', "LastModified": 1}, {"etag": "abc"}, {"md5Hash": "abc", "updated": 2}]
)
def test_a_version_is_the_etag_where_there_is_one(info):
    assert version_of(info) == "abc"


# ---- whole or not at all --------------------------------------------------------------------------------------------------


def test_a_put_on_a_disk_appears_whole_and_a_second_one_changes_nothing(tmp_path):
    path = tmp_path / "deep" / "er" / "object"
    fs = LocalFileSystem()
    assert put_if_absent(fs, str(path), DATA) is True
    assert put_if_absent(fs, str(path), b"other") is False
    assert path.read_bytes() == DATA and os.listdir(path.parent) == ["object"]


def test_replace_puts_the_new_bytes_in_place_of_the_old(tmp_path, bucket):
    for fs, path in ((LocalFileSystem(), f"{tmp_path}/object"), open_filesystem("s3://b/object")):
        replace(fs, path, b"old")
        replace(fs, path, DATA)
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
from wordsworth.pipeline.storage import filesystem as storage
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[1], kill)
getattr(storage, sys.argv[2])(LocalFileSystem(), sys.argv[3], b"x" * 100_000)
"""


@pytest.mark.parametrize(
    ("moment", "writer"), [("fsync", "put_if_absent"), ("link", "put_if_absent"), ("replace", "replace")]
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


@pytest.mark.parametrize("writer", [put_if_absent, replace])
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
        monkeypatch.setattr(storage.os, "replace" if (call, writer) == ("link", replace) else call, refuse)
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

    monkeypatch.setattr(storage.os, "link", refuse)
    fs, path = LocalFileSystem(), tmp_path / "object"
    assert put_if_absent(fs, str(path), DATA) is True
    assert put_if_absent(fs, str(path), b"other") is False
    assert path.read_bytes() == DATA and os.listdir(tmp_path) == ["object"]
    answers = iter([False, True])
    monkeypatch.setattr(storage.os.path, "exists", lambda name: name != str(path) or next(answers))
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

    monkeypatch.setattr(storage.os, "fsync", fsync)
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
    for writer in (put_if_absent, replace):
        with pytest.raises(
            UserError, match=f"cannot write s3://b/object: {said}: .*, then run the same command again"
        ):
            writer(*open_filesystem("s3://b/object"), DATA)
    assert waits == []


def test_a_store_without_conditions_gets_a_plain_put(bucket):
    bucket.conditional = False
    assert put_if_absent(*open_filesystem("s3://b/object"), DATA) is True
    assert bucket.objects == {"b/object": DATA}


# ---- reading --------------------------------------------------------------------------------------------------------------


class Flaky:
    """The one object of a store, `size` bytes of DATA: fails `times` times when byte `at` is asked for; never gives more than
    `most` bytes a read, nor any behind `end`. `opened`: where it was read from."""

    size = 61

    def __init__(
        self,
        at: int = 0,
        times: int = 0,
        most: int = 1 << 20,
        end: int = size,
        error: type[Exception] = OSError,
    ):
        self.at, self.left, self.most, self.end, self.error, self.opened = at, times, most, end, error, []

    def open(self, path, mode, **options):
        outer = self

        class Body(io.BytesIO):
            def seek(self, position, *args):
                outer.opened.append(position)
                return super().seek(position, *args)

            def read(self, size=-1):
                place = self.tell()
                if outer.left and place <= outer.at < place + size:
                    outer.left -= 1
                    raise outer.error(f"reset at {place}")
                return super().read(max(0, min(size, outer.most, outer.end - place)))

        return Body(DATA)

    def stream(self, start: int = 0) -> ObjectStream:
        return ObjectStream(self, "object", self.size, start)


@pytest.mark.parametrize("most", [1, 7, 64])
def test_a_stream_goes_on_at_the_exact_byte_after_a_fault_anywhere(waits, most):
    for start in (0, 13):
        for at in range(start, 61):
            fs = Flaky(at, times=2, most=most)
            assert fs.stream(start).readall() == DATA[start:61]
            assert len(fs.opened) == 3 and fs.opened[0] == start and max(fs.opened) <= at
    assert waits  # it waited between attempts


def test_a_stream_that_ends_early_is_opened_again_where_it_stood(waits, monkeypatch):
    fs = Flaky(end=20)
    stream = fs.stream()
    assert stream.read(20) == DATA[:20]
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: setattr(fs, "end", 61)))
    assert stream.readall() == DATA[20:61]
    assert fs.opened == [0, 20]


def test_a_short_read_is_no_end():
    assert io.BufferedReader(Flaky(most=3).stream(5), 16).read() == DATA[5:61]


@pytest.mark.parametrize("fault", [{"at": 30, "times": 10**6}, {"end": 30}], ids=["error", "early end"])
def test_a_fault_that_does_not_pass_is_raised_after_a_few_attempts(waits, fault):
    stream = Flaky(most=10, **fault).stream()
    assert stream.read(30) == DATA[:10] and stream.read(20) == DATA[10:20] and stream.read(10) == DATA[20:30]
    with pytest.raises(OSError, match=r"reset at 30|ended at byte 30 of 61"):
        stream.read(10)
    assert len(waits) == 4 and sum(waits) < 60
    stream.close()


class PayloadError(Exception):
    __module__ = "aiohttp.client_exceptions"  # as its clients raise it: no OSError


def test_the_exceptions_of_a_stores_client_are_faults_of_the_store(waits):
    fs = Flaky(30, times=2, error=PayloadError)
    assert fs.stream().readall() == DATA[:61] and fs.opened == [0] * 3 and len(waits) == 2
    with pytest.raises(OSError, match="PayloadError: reset at 0"):
        Flaky(30, times=10**6, error=PayloadError).stream().readall()


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ValueError])
def test_what_is_missing_or_forbidden_is_not_tried_again(waits, error):
    fs = Flaky(at=0, times=1, error=error)
    with pytest.raises(error):
        fs.stream().read(10)
    assert fs.opened == [0] and waits == []
