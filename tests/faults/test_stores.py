"""Check what a run does on a real store that fails: every fault at every operation, storms, lost
acknowledgements, credentials that end, a store that is killed."""

import itertools
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import servers
from tests.faults.ceph import SECRET
from tests.faults.protocol import run_rounds
from tests.faults.proxy import Faults
from tests.faults.servers import BUCKET, Backend, served, through
from tests.support.builders import write_shards
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage import patience, s3_body
from wordsworth.pipeline.storage.atomic import overwrite, put_if_absent
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.storage.objects import object_bytes, object_info
from wordsworth.pipeline.storage.patience import StoreFailure
from wordsworth.pipeline.storage.s3_files import S3Files
from wordsworth.pipeline.storage.streams import ObjectStream, with_retries
from wordsworth.pipeline.storage.walk import walk_files
from wordsworth.pipeline.verification.verifier import verify

DATA = os.urandom(200_000)
LARGE = os.urandom(1 << 20) * 101  # an upload in parts
LONG = pytest.mark.long
names = itertools.count()

# Each asks a store for `path` in its own way. What it returns is not different where nothing fails.
OPERATIONS = {
    "whole": lambda fs, path, folder: object_bytes(fs, path),
    "range": lambda fs, path, folder: object_bytes(fs, path, 0, len(DATA)),
    "stream": lambda fs, path, folder: ObjectStream(fs, path, len(DATA), 0).readall(),
    "s3fs": lambda fs, path, folder: fs.cat_file(path),
    "copy": lambda fs, path, folder: (fs.get_file(path, f"{folder}/f"), (folder / "f").read_bytes())[1],
    "head": lambda fs, path, folder: object_info(fs, path)["size"],
    "list": lambda fs, path, folder: [info["size"] for _, info in walk_files(fs, path.rpartition("/")[0])],
    "create": lambda fs, path, folder: put_if_absent(fs, f"{path}-{next(names)}/new", DATA),
    "overwrite": lambda fs, path, folder: overwrite(fs, path, DATA),
}


@pytest.fixture
def impatient(monkeypatch):
    """Wait half a second where the product waits a quarter of a minute."""
    monkeypatch.setattr(S3Files, "read_timeout", 0.5)
    monkeypatch.setattr(s3_body, "WINDOW_S", 0.5)


@contextmanager
def proxied(store: Backend, faults: Faults | None = None, **options):
    """Give a store behind the proxy, a file system of its own, and the path of an object with DATA."""
    with through(store, faults or Faults()) as behind:
        given = {**behind.options, **options, "skip_instance_cache": True}
        fs, path = open_filesystem(f"s3://{BUCKET}/faults-{next(names)}-{os.getpid()}/object", given)
        open_filesystem(f"s3://{BUCKET}", store.options)[0].pipe_file(path, DATA)
        yield behind.proxy, fs, path


# ---- one request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spared"),
    [
        ("slow", ()),
        ("broken", ()),
        ("reset", ()),
        ("hang", ()),
        ("trickle", ("head", "create", "overwrite")),
        ("truncated", ("head", "create", "overwrite")),
        ("short", ("head", "create", "overwrite")),
        # A flipped bit of a range is found by nobody, and one of a listing now and then.
        ("flipped", ("range", "stream", "head", "list", "create", "overwrite")),
        ("lost", ("whole", "range", "stream", "s3fs", "copy", "head", "list")),
    ],
)
def test_every_operation_outlasts_a_fault_and_gives_what_it_gives_without(
    ceph, tmp_path, impatient, kind, spared
):
    with proxied(ceph) as (proxy, fs, path):
        for name, call in OPERATIONS.items():
            if name in spared or (kind, name) == ("trickle", "list"):
                continue
            expected = call(fs, path, tmp_path)
            proxy._struck.clear()
            proxy.faults = Faults(**{kind: 1.0}, once=True)
            found = call(fs, path, tmp_path)
            proxy.faults = Faults()
            # A second attempt at a conditional write meets the first: its caller reads back what is there.
            assert found == expected or (kind, name, found) == ("lost", "create", False), name
            assert proxy.met[kind] > 0, name
            proxy.met.clear()


@pytest.mark.parametrize(
    "fault",
    ["lost", "late_error", pytest.param("slow", marks=LONG), pytest.param("reset", marks=LONG)],
)
def test_an_upload_in_parts_outlasts_a_fault_at_each_of_its_requests(ceph, fault):
    with proxied(ceph) as (proxy, fs, path):
        for operation in ("CreateMPU", "UploadPart", "CompleteMPU"):
            if fault == "late_error" and operation != "CompleteMPU":
                continue
            proxy.faults = Faults(**{fault: 1.0}, once=True, only=(operation,))
            overwrite(fs, path, LARGE)
            assert proxy.met[fault] > 0
            proxy.met.clear()
        proxy.faults = Faults(**{fault: 1.0}, once=True, only=("CompleteMPU",))
        assert put_if_absent(fs, f"{path}-new", LARGE) is True
        assert fs.info(path)["size"] == fs.info(f"{path}-new")["size"] == len(LARGE)


def test_one_layer_tries_again_and_a_store_that_stays_away_is_one_error(ceph):
    with proxied(ceph, Faults(slow=1.0)) as (proxy, fs, path):
        began = time.monotonic()
        with pytest.raises(StoreFailure, match=r"get_object of .*object fails: SlowDown: .*tries in \d s"):
            with_retries(lambda: object_bytes(fs, path), patience_s=2)
        assert 2 <= time.monotonic() - began < 15
        assert 2 <= proxy.requests["GET"] <= 25, "s3fs, botocore and our own tries would be 125"


def test_a_file_system_of_the_users_own_settings_keeps_them(ceph):
    retries = {"max_attempts": 3, "mode": "legacy"}
    with proxied(ceph, config_kwargs={"retries": retries, "read_timeout": 77}) as (_, fs, path):
        assert object_bytes(fs, path) == DATA
        config = fs._s3.meta.config
        assert (config.retries["mode"], config.read_timeout) == ("legacy", 77)
        assert config.max_pool_connections == 64


def test_a_body_that_is_short_again_and_again_is_never_taken_for_the_whole(ceph):
    with proxied(ceph, Faults(short=1.0)) as (proxy, fs, path):
        threading.Timer(1.5, setattr, [proxy, "faults", Faults()]).start()
        assert object_bytes(fs, path) == DATA
        assert proxy.met["short"] > 2


def test_a_store_whose_etags_are_no_md5_is_read_with_one_request_an_object_in_the_end(ceph):
    with proxied(ceph) as (proxy, fs, path):
        real = fs.ask

        async def with_other_etags(method, akwarglist, kwargs):
            kwargs = {name: value for name, value in kwargs.items() if name != "IfMatch"}
            answer = await real(method, akwarglist, kwargs)
            return {**answer, "ETag": '"00000000000000000000000000000000"'}

        fs.ask = with_other_etags
        for _ in range(6):
            assert object_bytes(fs, path) == DATA
        assert proxy.requests["GET"] == 3 * 2 + 3


# ---- storms ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_requests_fall_in_a_storm_and_the_rate_is_back_soon_after_it(ceph):
    clean_s, storm_s, threads = 2.5, 7.0, 16
    with proxied(ceph) as (proxy, fs, path):
        over = threading.Event()
        done: list[float] = []

        def read() -> None:
            while not over.is_set():
                assert object_bytes(fs, path, 0, 1000) == DATA[:1000]
                done.append(time.monotonic())
                time.sleep(0.05)  # what an image's work takes

        with ThreadPoolExecutor(threads) as pool:
            readers = [pool.submit(read) for _ in range(threads)]
            time.sleep(clean_s)
            began, proxy.faults = time.monotonic(), Faults(slow=1.0)
            time.sleep(storm_s)
            ended, proxy.faults = time.monotonic(), Faults()
            time.sleep(patience.LONGEST_WAIT_S + 2)
            over.set()
            for reader in readers:
                reader.result()
    before = sum(began - 2 < at <= began for at in done) / 2
    per_second = Counter(int(at - ended) for at in done if at > ended)
    # Two seconds, because the machine's own rate varies from one to the next.
    back = max(per_second[second] + per_second[second + 1] for second in range(9)) / 2
    assert back >= 0.75 * before, (before, per_second)
    asked = [arrival.seconds for arrival in proxy.arrivals if began + 4 < arrival.seconds < ended]
    assert len(asked) / (storm_s - 4) < before / 10, "the store is asked less and less"
    gaps = sorted(b - a for a, b in itertools.pairwise(asked))
    assert len({round(gap, 2) for gap in gaps}) > len(gaps) / 3, "and not by all at once"


def test_a_store_that_never_answered_a_command_is_one_line_within_ten_seconds(ceph, wordsworth):
    with through(ceph, Faults(slow=1.0)) as behind:
        options = ["--storage-options", str(behind.options).replace("'", '"')]
        done = wordsworth("verify", f"s3://{BUCKET}/run", *options)
        asked = [arrival.seconds for arrival in behind.proxy.arrivals]
        assert asked[-1] - asked[0] < patience.FIRST_PATIENCE_S + 4
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "head_object of wordsworth/run/_run/plan.json fails: 503" in done.stderr


# ---- credentials -------------------------------------------------------------------------------------------


def test_credentials_of_the_storage_options_that_ended_are_one_error_at_once(ceph):
    with proxied(ceph, Faults(expired_after=2)) as (proxy, fs, path):
        began = time.monotonic()
        with pytest.raises(StoreFailure, match=r"the credentials have ended \(ExpiredToken: .*never renewed"):
            for _ in range(4):
                with_retries(lambda: object_bytes(fs, path))
        assert time.monotonic() - began < 3 and proxy.met["expired"] == 1


def credentials_file(path: Path, key: str) -> None:
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n"
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_every_request_that_waits_for_other_credentials_gets_them(ceph, tmp_path, monkeypatch):
    ceph.ceph.add_key("AKTHIRD", SECRET)
    file = tmp_path / "credentials"
    credentials_file(file, ceph.options["key"])
    with proxied(ceph, Faults(expired_after=20)) as (proxy, _, path):
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs, _ = open_filesystem(f"s3://{path}", {"skip_instance_cache": True})

        def ask(number: int) -> bool:
            if number % 4:
                return with_retries(lambda: object_bytes(fs, path)) == DATA
            return with_retries(lambda: object_info(fs, path))["size"] == len(DATA)

        def renew() -> None:
            while proxy.met["expired"] <= 16:  # every thread waits
                time.sleep(0.05)
            credentials_file(file, "AKTHIRD")

        renewal = threading.Thread(target=renew, daemon=True)
        renewal.start()
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(80)))
        assert proxy.met["expired"] > 16


@pytest.mark.long
def test_credentials_that_end_in_the_middle_of_a_run_are_read_again_from_their_file(
    ceph, tmp_path, small_model, wordsworth
):
    keys = write_shards(tmp_path / "in", 6, 8)
    root = f"s3://{BUCKET}/renewed-{os.getpid()}"
    fs, _ = open_filesystem(root, ceph.options)
    for file in (tmp_path / "in").iterdir():
        fs.pipe_file(f"{root.removeprefix('s3://')}/in/{file.name}", file.read_bytes())
    ceph.ceph.add_key("AKSECOND", SECRET)
    file = tmp_path / "credentials"
    credentials_file(file, ceph.options["key"])
    faults = Faults(
        expired_after=25, slow=0.05, reset=0.02, truncated=0.05, short=0.05, broken=0.02, lost=0.1
    )
    with through(ceph, faults, seed=35) as behind:
        over = threading.Event()

        def renew() -> None:
            while not over.wait(0.1):
                if behind.met["expired"] > 5:
                    return credentials_file(file, "AKSECOND")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(renew)
            env = {
                "AWS_SHARED_CREDENTIALS_FILE": str(file),
                "AWS_ENDPOINT_URL": behind.proxy.url,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            given = [f"{root}/in/", "--output", f"{root}/out", "--model", small_model, "--precision", "fp32"]
            try:
                done = wordsworth("label", *given, "--unit-rows", 4, "--batch-size", 4, env=env)
            finally:
                over.set()
        assert done.returncode == 0, done.stderr
        assert behind.met["expired"] > 5 and behind.met["slow"] > 2, behind.met
    report = verify(f"{root}/out", source=True, storage_options=ceph.options)
    assert report.ok and report.rows == len(keys)


# ---- whole runs --------------------------------------------------------------------------------------------

MIXED = Faults(
    slow=0.05,
    burst=3,
    reset=0.02,
    broken=0.02,
    truncated=0.03,
    short=0.03,
    lost=0.5,
    conflict=0.05,
    latency=0.01,
)


def test_workers_that_are_killed_on_a_real_store_that_fails_leave_exact_rows(ceph):
    with through(ceph, MIXED, seed=7) as store:
        result = run_rounds(seed=7, rounds=1, backend=store, lives=2, shards=3)
    assert result.exact and not result.failures, f"{result} {store.met}"
    assert result.kills and store.met["slow"] > 3 and store.met["lost"], store.met


def test_eight_racing_writers_leave_one_object_and_one_winner(ceph):
    with through(ceph, Faults(conflict=0.2, reset=0.1), seed=8) as store:
        for number in range(5):
            _, path = open_filesystem(f"s3://{BUCKET}/race-{os.getpid()}/{number}", store.options)

            def write(rank: int, path: str = path) -> bool:
                options = {**store.options, "skip_instance_cache": True}
                return put_if_absent(open_filesystem(f"s3://{path}", options)[0], path, bytes([rank]) * 999)

            with ThreadPoolExecutor(8) as pool:
                winners = [rank for rank, is_first in enumerate(pool.map(write, range(8))) if is_first]
            kept = open_filesystem(f"s3://{path}", ceph.options)[0].cat_file(path)
            assert winners == [kept[0]] and kept == kept[:1] * 999


@LONG
@pytest.mark.parametrize("kind", ["slow", "broken", "reset", "truncated", "short", "hang", "trickle", "lost"])
@pytest.mark.parametrize("operation", ["LIST", "HEAD", "GET", "PUT"])
def test_a_run_outlasts_every_fault_at_every_operation(ceph, kind, operation):
    if (kind in ("truncated", "short", "trickle")) > (operation in ("LIST", "GET")):
        pytest.skip("an answer without a body")
    if (kind == "lost") > (operation == "PUT"):
        pytest.skip("nothing is written")
    often = 0.02 if kind in ("hang", "trickle") else 0.3
    with through(ceph, Faults(**{kind: often}, only=(operation,)), seed=9) as store:
        result = run_rounds(seed=9, rounds=1, backend=store, lives=2, shards=3)
    assert result.exact and not result.failures, f"{result} {store.met}"


@LONG
def test_a_store_that_is_killed_and_started_again_in_the_middle_of_a_run_costs_no_row():
    for store in served(lambda: servers.ceph(durable=True)):
        killed = threading.Timer(6, store.ceph.kill)
        killed.start()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_rounds, 11, 1, store, lives=1, shards=12, pace=0.3)
            killed.join()
            time.sleep(3)
            store.ceph.start_again()
            result = running.result()
        assert result.exact and not result.failures, result


def test_a_store_that_forbids_is_not_asked_again(ceph):
    with proxied(ceph, Faults(denied=1.0)) as (proxy, fs, path):
        with pytest.raises(PermissionError):
            with_retries(lambda: object_bytes(fs, path))
        with pytest.raises(UserError, match="permission denied"):
            put_if_absent(fs, path, b"x")
        assert proxy.requests["GET"] == 1 and proxy.requests["PUT"] == 1
