"""Check the unit protocol: whatever dies and whenever, every sample has one row; and the harness notices
worse protocols."""

import os
from pathlib import Path

import pytest

from tests.faults import servers
from tests.faults.protocol import run_rounds
from tests.faults.proxy import Faults
from tests.faults.servers import BUCKET, Backend, served, through
from tests.faults.worker import ON_A_DISK
from tests.support.runs import made_up_plan
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.storage import filesystem as storage
from wordsworth.pipeline.storage.atomic import overwrite, put_if_absent
from wordsworth.pipeline.storage.filesystem import open_filesystem
from wordsworth.pipeline.storage.streams import ObjectStream

DATA = bytes(range(251)) * 40


@pytest.fixture(scope="module")
def moto():
    yield from served(servers.moto)


@pytest.fixture(scope="module")
def rclone():
    yield from served(servers.rclone)


@pytest.fixture(params=["moto", "rclone"])
def store(request) -> Backend:
    return request.getfixturevalue(request.param)


@pytest.fixture
def disk(tmp_path) -> Backend:
    return Backend("disk", str(tmp_path))


def place(backend: Backend, name: str):
    return open_filesystem(f"s3://{BUCKET}/{name}-{os.urandom(4).hex()}", backend.options)


# ---- exactly once, on this disk ----------------------------------------------------------------------------


def test_workers_killed_at_every_point_leave_the_rows_of_an_undisturbed_run(disk):
    result = run_rounds(seed=1, rounds=1, backend=disk, processes=4, shards=6)
    assert result.exact and not result.failures, result
    assert result.deaths.keys() >= {*ON_A_DISK} and result.kills >= 7, result
    assert result.looks > 5 and 0 < len(result.recovery_seconds) == len(result.repeated_units) <= result.kills
    assert max(result.repeated_units) <= 1, "a kill costs the one unit that its worker had under way"


def test_an_answer_of_the_store_that_is_short_is_no_end(disk):
    result = run_rounds(seed=2, rounds=1, backend=disk, lives=2, short=0.2)
    assert result.exact and not result.failures and result.kills, result


# ---- what a worse protocol would do is noticed -------------------------------------------------------------


def test_names_of_every_attempts_own_are_noticed(disk):
    result = run_rounds(seed=3, rounds=1, backend=disk, lives=1, deed="random_names")
    assert not result.exact and result.doubled and result.rows_out > result.rows_in and result.findings


def test_files_written_in_place_are_noticed(disk):
    result = run_rounds(seed=4, rounds=1, backend=disk, lives=2, deed="in_place")
    assert not result.exact and result.partial


def test_an_end_without_proof_is_noticed(disk):
    result = run_rounds(seed=2, rounds=1, backend=disk, lives=1, short=0.6, deed="trusting")
    assert not result.exact and (result.lost or result.doubled) and result.findings


# ---- exactly once, on object stores ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "faults"),
    [
        ("moto", Faults(lost=1.0)),
        ("moto", Faults(slow=0.1, reset=0.03, conflict=0.1, once=True)),
        ("rclone", Faults(lost=1.0, once=True, latency=0.02)),
    ],
    ids=["every acknowledgement lost", "503, resets and conflicts", "no conditions, acknowledgements lost"],
)
def test_a_store_that_fails_now_and_then_gets_exact_rows(request, server, faults):
    with through(request.getfixturevalue(server), faults, seed=5) as store:
        result = run_rounds(seed=5, rounds=1, backend=store, lives=2, shards=3)
    assert result.exact and not result.failures, f"{result} {store.met}"
    assert result.kills and store.met["lost" if faults.lost else "slow"] > 3


# ---- one put -----------------------------------------------------------------------------------------------


def test_a_second_put_meets_the_first_although_a_listing_is_older_than_both(moto):
    fs, path = place(moto, "folder")
    fs.pipe_file(f"{path}/before", b"")
    assert [name.rpartition("/")[2] for name in fs.ls(path, detail=False)] == [
        "before"
    ]  # from now on the client knows the folder
    twin, _ = open_filesystem(f"s3://{path}", {**moto.options, "skip_instance_cache": True})
    assert put_if_absent(twin, f"{path}/object", DATA) is True
    assert put_if_absent(fs, f"{path}/object", b"other") is False
    with fs.open(f"{path}/object", "rb") as file:
        assert file.read() == DATA


@pytest.mark.parametrize(
    ("faults", "written"),
    [
        (Faults(lost=1.0), False),  # the caller reads back and sees that it is its own
        (Faults(conflict=1.0, once=True), True),
        (Faults(unconditional=1.0), True),
    ],
    ids=["acknowledgement lost", "409", "501"],
)
def test_a_put_gets_through_and_says_so(moto, faults, written):
    with through(moto, faults) as store:
        fs, path = place(store, "object")
        assert put_if_absent(fs, path, DATA) is written
    assert sum(store.met.values()) >= 1
    assert open_filesystem(f"s3://{path}", moto.options)[0].cat_file(path) == DATA


def test_a_put_that_loses_against_a_conflicting_one_meets_it(moto):
    fs, path = place(moto, "object")
    assert put_if_absent(fs, path, DATA) is True
    with through(moto, Faults(conflict=1.0)) as store:
        assert put_if_absent(open_filesystem(f"s3://{path}", store.options)[0], path, b"other") is False
    assert fs.cat_file(path) == DATA


@pytest.mark.parametrize("write", [put_if_absent, overwrite])
def test_a_put_that_is_forbidden_or_has_no_bucket_says_so_in_one_line(moto, write):
    with (
        through(moto, Faults(denied=1.0)) as store,
        pytest.raises(UserError, match=r"cannot write s3://.*: permission denied \(.*\): "),
    ):
        write(*place(store, "object"), DATA)
    fs, _ = place(moto, "object")
    missing = r"cannot write s3://no-such-bucket/object: the bucket does not exist \(.*\): check its name"
    with pytest.raises(UserError, match=missing):
        write(fs, "no-such-bucket/object", DATA)


# ---- checksums of Amazon's client, on stores that are not Amazon's -----------------------------------------


@pytest.mark.parametrize("stored_with", ["when_supported", "when_required"])
def test_every_byte_is_read_from_any_place_however_the_object_was_stored(store, stored_with):
    import s3fs

    fs, path = place(store, "object")
    config = {"request_checksum_calculation": stored_with}
    s3fs.S3FileSystem(**store.options, config_kwargs=config, skip_instance_cache=True).pipe_file(path, DATA)
    for start in (0, 1, len(DATA) // 2, len(DATA) - 1):
        with ObjectStream(fs, path, len(DATA), start) as stream:
            assert stream.readall() == DATA[start:]


def test_checksums_that_are_not_required_stay_amazons_own(monkeypatch):
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        *(f"AWS_{name.upper()}" for name in storage.CHECKSUMS),
    ):
        monkeypatch.delenv(name, raising=False)

    def settings(**options):
        return open_filesystem("s3://bucket/key", {"anon": True, **options})[0].config_kwargs

    assert not settings().keys() & set(storage.CHECKSUMS)
    assert settings(endpoint_url="http://127.0.0.1:1") == dict.fromkeys(storage.CHECKSUMS, "when_required")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    assert settings(endpoint_url="http://127.0.0.1:2") == {"response_checksum_validation": "when_required"}


def test_a_run_folder_on_a_store_sees_what_others_wrote(store):
    first = RunFolder(f"s3://{BUCKET}/run-{os.urandom(4).hex()}", store.options)
    plan = made_up_plan({})
    assert first.create(plan) == plan and first.prediction_files() == []
    twin = RunFolder(first.uri, {**store.options, "skip_instance_cache": True})
    put_if_absent(twin.fs, twin.path("predictions", "a-0123456789ab-00000-end.parquet"), DATA)
    assert [Path(name).name for name in first.prediction_files()] == ["a-0123456789ab-00000-end.parquet"]
