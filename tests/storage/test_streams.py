"""streams: reads survive a store's bad moments, and begin again at the exact byte."""

import io
from types import SimpleNamespace

import pytest

from wordsworth.pipeline.sources.lost_objects import loss_of
from wordsworth.pipeline.storage.patience import StoreFailure
from wordsworth.pipeline.storage.streams import ObjectStream, with_retries

DATA = bytes(range(97)) * 3


class PayloadError(Exception):
    """Stand for an exception of a store's client that is no OSError."""

    __module__ = "aiohttp.client_exceptions"


class Flaky:
    """Hold the one object of a store that fails.

    Attributes:
        size: bytes of DATA that the object has.
        at: byte whose read fails.
        left: reads that still fail.
        most: bytes that one read gives, at most.
        end: byte behind which a read gives nothing.
        opened: bytes at which the object was opened.
    """

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


@pytest.mark.slow
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


def refusal(module: str, status: int, code: str | None = None) -> Exception:
    """Return an exception as the clients of Azure and Hugging Face raise it."""
    error = type("Refusal", (Exception,), {"__module__": module})("no")
    error.response = SimpleNamespace(status_code=status)
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "tries"),
    [
        (OSError("Forbidden: b/x.jpg\nno storage.objects.get access"), PermissionError, 1),
        (OSError("Forbidden: b/x.jpg\nRate Limit Exceeded"), OSError, 5),
        (OSError("Forbidden: b/x.jpg\nquotaExceeded"), OSError, 5),
        (refusal("azure.core.exceptions", 403, "AuthorizationPermissionMismatch"), PermissionError, 1),
        (refusal("azure.core.exceptions", 403, "AuthenticationFailed"), OSError, 5),
        (refusal("azure.core.exceptions", 409, "BlobArchived"), PermissionError, 1),
        (refusal("azure.core.exceptions", 404, "BlobNotFound"), FileNotFoundError, 1),
        (refusal("azure.core.exceptions", 503, "ServerBusy"), OSError, 5),
        (refusal("huggingface_hub.errors", 403), PermissionError, 1),
        (refusal("huggingface_hub.errors", 404), FileNotFoundError, 1),
        (refusal("huggingface_hub.errors", 429), OSError, 5),
    ],
)
def test_the_refusals_of_every_client_are_those_of_a_disk(waits, error, kind, tries):
    calls = []

    def call():
        calls.append(1)
        raise error

    with pytest.raises(OSError) as raised:
        with_retries(call)
    assert type(raised.value) is kind and len(calls) == tries
    if getattr(error, "error_code", None) == "BlobArchived":
        assert loss_of(raised.value, None, "x").code == "archived"


def test_what_the_client_of_s3_outlasted_no_longer_is_not_tried_again(waits):
    calls = []

    def call():
        calls.append(1)
        raise StoreFailure("get_object of bucket/key fails: SlowDown: (30 tries in 120 s)")

    with pytest.raises(StoreFailure):
        with_retries(call)
    assert len(calls) == 1 and waits == []


def test_no_try_begins_after_the_patience(waits):
    with pytest.raises(OSError, match="reset at 0"):
        with_retries(lambda: Flaky(times=10**6).stream()._read(10), patience_s=0.0)
    assert len(waits) == 0
