"""filesystem: what may be opened, and how a URI is shown."""

import socket

import fsspec
import pytest

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import (
    absolute_uri,
    check_scheme,
    open_filesystem,
    version_of,
    without_credentials,
)

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
        ("http://host:80/a@b?c=d@e", "http://host:80/a@b"),
        ("http://user:canary@host:80/a?b=c#d", "http://host:80/a"),
        ("HTTPS://host/a.jpg?X-Amz-Signature=canary", "HTTPS://host/a.jpg"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
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
    assert without_credentials(uri) == shown


def test_a_refusal_shows_no_credentials():
    with pytest.raises(UserError) as refusal:
        check_scheme("ftp://user:canary@host/a")
    assert "canary" not in str(refusal.value) and "ftp://host/a" in str(refusal.value)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_file_system_of_a_store_is_another_one_only_where_that_is_asked_for(is_own):
    options = {"anon": True, "skip_instance_cache": is_own}
    first, _ = open_filesystem("s3://bucket/key", options)
    second, _ = open_filesystem("s3://bucket/key", options)
    assert (first is not second) == is_own


def test_uris_are_absolute_paths_on_a_disk_and_carry_their_scheme_on_a_store(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    for uri in ("a.tar", f"file://{tmp_path}/a.tar", f"{tmp_path}/a.tar", "./a.tar"):
        assert absolute_uri(*open_filesystem(uri)) == f"{tmp_path}/a.tar"
    assert absolute_uri(*open_filesystem("s3://b/a.tar")) == "s3://b/a.tar"


@pytest.mark.parametrize(
    "info", [{"ETag": '"abc"', "LastModified": 1}, {"etag": "abc"}, {"md5Hash": "abc", "updated": 2}]
)
def test_a_version_is_the_etag_where_there_is_one(info):
    assert version_of(info) == "abc"
