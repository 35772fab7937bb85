"""A bucket whose requester pays gives nothing to a request that does not say so."""

import contextlib

import aiobotocore.httpsession
import pytest

from wordsworth.pipeline.storage.atomic import overwrite, put_if_absent
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.storage.objects import object_bytes, object_info
from wordsworth.pipeline.storage.patience import patience_of
from wordsworth.pipeline.storage.walk import list_names, walk_files

REQUESTS = {
    "a listing": lambda fs: list(walk_files(fs, "bucket/folder")),
    "names": lambda fs: list(list_names(fs, "bucket/folder")),
    "a look": lambda fs: object_info(fs, "bucket/folder/a.jpg"),
    "an odd name": lambda fs: object_info(fs, "bucket/folder//a.jpg"),
    "an object": lambda fs: object_bytes(fs, "bucket/folder/a.jpg"),
    "a range": lambda fs: object_bytes(fs, "bucket/folder/a.jpg", 0, 10),
    "fsspec's own": lambda fs: fs.cat_file("bucket/folder/a.jpg"),
    "a commit": lambda fs: put_if_absent(fs, "bucket/folder/a.parquet", b"rows"),
    "a record": lambda fs: overwrite(fs, "bucket/folder/a.json", b"{}"),
    "a removal": lambda fs: fs.rm_file("bucket/folder/a.json"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_request_says_that_the_requester_pays(monkeypatch, kind):
    seen = []

    async def send(session, request):
        seen.append((request.method, request.headers.get("x-amz-request-payer")))
        raise RuntimeError("no network here")

    monkeypatch.setattr(aiobotocore.httpsession.AIOHTTPSession, "send", send)
    options = {"key": "a", "secret": "b", "requester_pays": True, "endpoint_url": "http://127.0.0.1:1"}
    fs, _ = open_filesystem("s3://bucket/folder", options)
    with patience_of(0.1), contextlib.suppress(Exception):
        REQUESTS[kind](fs)
    assert seen and {payer for _, payer in seen} in ({"requester"}, {b"requester"})
