"""Show that a store's answer to a range is compared with what the store was asked for."""

from collections.abc import Callable

import pytest
from fsspec.asyn import sync
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.web import Answering, web_server
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage import patience
from wordsworth.pipeline.storage.filesystem import open_exact
from wordsworth.pipeline.storage.objects import object_bytes, object_range
from wordsworth.pipeline.storage.patience import StoreFailure
from wordsworth.pipeline.storage.preflight import check_stores

pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 40


def asked_range(request: Answering) -> tuple[int, int]:
    begin, _, end = request.headers["Range"].removeprefix("bytes=").partition("-")
    return int(begin), min(int(end or len(DATA)), len(DATA) - 1) + 1


def ranged(request: Answering, begin: int, end: int, size: object = len(DATA)) -> None:
    request.whole(DATA[begin:end], 206, Content_Range=f"bytes {begin}-{end - 1}/{size}", ETag='"1"')


def reading(answer: Callable[[Answering], None], read: Callable) -> bytes:
    """Return what `read` gives of the object of a server that answers by a function."""
    with web_server(answer) as server:
        options = {"endpoint_url": server.address, "key": "k", "secret": "s", "skip_instance_cache": True}
        fs, path = open_exact("s3://bucket/a.tar", options)
        return read(fs, path, 100, 5000)


def ranged_bytes(fs, path: str, begin: int, end: int) -> bytes:
    return object_range(fs, path, begin, end).data


READS = [object_bytes, ranged_bytes]


@pytest.mark.parametrize("read", READS)
def test_a_store_that_ignores_ranges_gives_the_bytes_of_the_range(read):
    assert reading(lambda request: request.whole(DATA, ETag='"1"'), read) == DATA[100:5000]


@pytest.mark.parametrize("read", READS)
def test_a_store_that_sends_more_than_the_range_gives_the_bytes_of_the_range(read):
    assert reading(lambda request: ranged(request, 100, len(DATA)), read) == DATA[100:5000]


def test_a_client_that_gives_more_than_the_range_is_an_error():
    class Longer(MemoryFileSystem):
        def cat_file(self, path, start=None, end=None, **others):
            return DATA

    with pytest.raises(OSError, match="more bytes than it was asked for"):
        object_bytes(Longer(), "/a.tar", 100, 5000)


@pytest.mark.parametrize("read", READS)
def test_other_bytes_than_those_of_the_range_are_never_taken(read, monkeypatch):
    requests = []

    def once(request: Answering) -> None:
        begin, end = asked_range(request)
        requests.append(begin)
        ranged(request, begin + (7 if len(requests) == 1 else 0), end)

    def always(request: Answering) -> None:
        begin, end = asked_range(request)
        ranged(request, begin + 7, end)

    assert reading(once, read) == DATA[100:5000]
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    monkeypatch.setattr(patience, "FIRST_PATIENCE_S", 0.5)
    with pytest.raises(StoreFailure, match="other bytes than it was asked for"):
        reading(always, read)


def test_the_rest_of_a_body_that_broke_off_is_never_another_part(monkeypatch):
    """A store that ignores the range of the second request would give the begin once more."""
    requests = []

    def answer(request: Answering) -> None:
        begin, end = asked_range(request)
        requests.append(begin)
        if len(requests) == 1:
            request.head(
                206, Content_Range=f"bytes {begin}-{end - 1}/{len(DATA)}", Content_Length=end - begin
            )
            request.write(DATA[begin : begin + 1000])
            request.close_connection = True
        elif len(requests) == 2:
            request.whole(DATA)
        else:
            ranged(request, begin, end)

    assert reading(answer, ranged_bytes) == DATA[100:5000]


def test_a_range_of_an_object_of_unknown_size_is_an_error_of_the_store():
    with pytest.raises(OSError, match="does not say how large it is"):
        reading(lambda request: ranged(request, *asked_range(request), size="*"), ranged_bytes)


def test_a_whole_body_that_broke_off_goes_on_behind_what_came():
    requests = []

    def answer(request: Answering) -> None:
        requests.append(request.headers.get("Range"))
        if len(requests) == 1:
            request.head(200, Content_Length=len(DATA))
            request.write(DATA[:1000])
            request.close_connection = True
        elif requests[-1]:
            ranged(request, *asked_range(request))
        else:
            request.whole(DATA)

    def pieces(fs, path: str, begin: int, end: int) -> bytes:
        async def read() -> bytes:
            body = (await fs._call_s3("get_object", Bucket="bucket", Key="a.tar"))["Body"]
            found = b""
            while piece := await body.read(500):
                found += piece
            return found

        return sync(fs.loop, read)

    assert reading(answer, pieces) == DATA and len(requests) == 2


def test_an_endpoint_that_gives_web_pages_is_named_before_anything_is_read():
    with web_server(lambda request: request.whole(b"<html><body>Log in</body></html>")) as server:
        options = {"endpoint_url": server.address, "key": "k", "secret": "s"}
        with pytest.raises(UserError, match="cannot use s3://bucket: what answers does not speak S3: check"):
            check_stores(["s3://bucket/a.tar"], [], options)
