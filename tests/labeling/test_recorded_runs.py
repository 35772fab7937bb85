"""Hold the program against what an earlier version of it wrote; recorded/make.py says how that was made.

Every test copies records into an empty bucket of a store on loopback, where they are the runs that they were
when they were made, and goes on with them by the command line.
"""

import contextlib
import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.servers import BUCKET, moto, served
from tests.support.builders import photo, write_tar
from wordsworth.jobs.cli import run
from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.sources.file_kinds import IMAGE_KEYS

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.ray, pytest.mark.server]

RECORDED = Path(__file__).parent / "recorded"
COMMANDS = json.loads((RECORDED / "commands.json").read_text())
# What differs between two makings of the same thing: times, and who made it.
OF_A_MAKING = (
    "job",
    "seconds",
    "bytes",
    "bytes_written",
    "stage_seconds",
    "last_command",
    "into_bytes",
    "version",
)
# What a training says of an epoch, but for its speed.
FIGURES = (
    "step",
    "loss",
    "accuracy",
    "gradient_norm",
    "lr",
    "errors",
    "val_loss",
    "val_accuracy",
    "val_images",
)
# What follows from the versions of the libraries that decode images.
OF_A_DECODER = ("decoder", "fingerprint", "run_id")


@dataclass(frozen=True)
class Done:
    """Hold what a command said and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """Return what it printed for --json."""
        return json.loads(self.stdout)


class Store:
    """Work in a bucket: put records there, run commands on them, look at what is there then."""

    def __init__(self, options: dict[str, Any]):
        import s3fs

        # The commands share this process: what one has listed must not be what the next one sees.
        self.options = {**options, "use_listings_cache": False}
        self.fs = s3fs.S3FileSystem(**self.options)

    def clear(self) -> None:
        """Remove everything."""
        if names := self.fs.find(BUCKET):
            self.fs.rm(names)

    def put(self, record: str) -> None:
        """Copy a record into the bucket."""
        self.fs.pipe({f"{BUCKET}/{record}/{path}": data for path, data in recorded(record).items()})

    def files(self, name: str) -> dict[str, bytes]:
        """Return what lies in a folder of the bucket: contents by their paths in it."""
        folder = f"{BUCKET}/{name}/"
        return {path.removeprefix(folder): self.fs.cat_file(path) for path in self.fs.find(folder)}

    def do(self, arguments: list[str], *more: str) -> Done:
        """Run a command."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = run([*arguments, *more, "--storage-options", json.dumps(self.options)])
        return Done(code, stdout.getvalue(), stderr.getvalue())

    def make(
        self, record: str, *more: str, without: str | None = None, output: str | None = None
    ) -> dict[str, Any]:
        """Run the command of a record to its end, and return the summary.

        Args:
            record: its name.
            more: further options.
            without: an option of the recorded command that is left out, with its value.
            output: the name of another folder in the bucket.
        """
        arguments = list(COMMANDS["runs"][record])
        if without:
            del arguments[arguments.index(without) : arguments.index(without) + 2]
        if output:
            arguments[arguments.index("--output") + 1] = f"s3://{BUCKET}/{output}"
        done = self.do(arguments, *more, "--json")
        assert done.exit_code == 0, done.stderr
        return done.told

    def assert_exact(self, name: str, summary: dict[str, Any]) -> None:
        """Verify a run against its source: it must be exact, and be what its summary says."""
        done = self.do(["verify", f"s3://{BUCKET}/{name}", "--source"])
        assert done.exit_code == 0, done.stdout + done.stderr
        errors = sum(summary["errors"].values())
        failed = f" ({errors} with an error)" if errors else ""
        files, shards = plural(summary["files"], "file"), plural(summary["shards"], "shard")
        said = f"exact: {plural(summary['rows'], 'row')}{failed} in {files} of {shards}, "
        assert done.stdout.startswith(said), done.stdout


@pytest.fixture(scope="module")
def server():
    """Serve an object store for this module."""
    yield from served(moto)


@pytest.fixture
def store(server) -> Store:
    """Return a bucket with the recorded sources and the recorded model in it, and nothing else."""
    made = Store(server.options)
    made.clear()
    made.put("source")
    made.put("model")
    return made


# ---- reading what is there ---------------------------------------------------------------------------------


def recorded(record: str) -> dict[str, bytes]:
    """Return the contents of a record by their paths; of the compacted run only what was added is
    recorded."""
    if record == "compacted":
        return recorded("finished") | added("compacted")
    return added(record)


def added(record: str) -> dict[str, bytes]:
    """Return what is in the files of a record, by their paths."""
    packed = RECORDED / f"{record}.tar.xz"
    if packed.exists():
        with tarfile.open(packed) as archive:
            return {member.name: archive.extractfile(member).read() for member in archive}
    folder = RECORDED / record
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """Return those of the files that lie in a folder."""
    return {path: data for path, data in sorted(files.items()) if path.startswith(f"{folder}/")}


def steady(told: dict[str, Any], *more: str) -> dict[str, Any]:
    """Return what two makings of the same thing have in common."""
    return {name: value for name, value in told.items() if name not in OF_A_MAKING + OF_A_DECODER + more}


def table_of(data: bytes) -> pa.Table:
    """Return the rows of a Parquet file."""
    return pq.read_table(io.BytesIO(data))


def footer_of(data: bytes) -> dict[str, Any]:
    """Return our JSON in a Parquet file, empty where there is none."""
    return json.loads((pq.read_schema(io.BytesIO(data)).metadata or {}).get(b"wordsworth", b"{}"))


def rows_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return the prediction rows of a run, in the order of its files."""
    return [row for data in under("predictions", files).values() for row in table_of(data).to_pylist()]


def numbers_of(row: dict[str, Any]) -> list[float]:
    """Return what a model computed for a row."""
    return [*(entry["score"] for entry in row.get("topk") or ()), *(row.get("embedding") or ())]


def assert_same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare prediction rows: scores to within what processors differ by, words for an error not at all."""
    computed = ("score", "topk", "embedding", "error_detail")
    for one, other in zip(found, expected, strict=True):
        assert {name: one[name] for name in one if name not in computed} == {
            name: other[name] for name in other if name not in computed
        }
        assert [entry["label"] for entry in one.get("topk") or ()] == [
            entry["label"] for entry in other.get("topk") or ()
        ]
        assert numbers_of(one) == pytest.approx(numbers_of(other), abs=2e-3)
        assert (one["error_detail"] is None) == (other["error_detail"] is None)


def assert_same_layout(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Compare names of files, schemas and footers of Parquet files, the plan and the summary.

    A plan differs in the extensions of images alone, of which there are more now, and in what follows. A
    summary has two times of its last command more.
    """
    assert found.keys() == expected.keys()
    for path, data in expected.items():
        if path.endswith(".parquet"):
            schema, other = (pq.read_schema(io.BytesIO(one)).remove_metadata() for one in (found[path], data))
            assert schema.equals(other, check_metadata=True), path
            footer, other = footer_of(found[path]), footer_of(data)
            assert list(footer) == list(other), path
            assert steady(footer) == steady(other), path
            assert table_of(found[path]).num_rows == table_of(data).num_rows, path
    for path in under("_run/shards", expected):
        assert table_of(found[path]).equals(table_of(expected[path]), check_metadata=True), path
    plan, summary = "_run/plan.json", "_run/summary.json"
    one, other = json.loads(found[plan]), json.loads(expected[plan])
    assert tuple(one["asked"]["image-key"]) == IMAGE_KEYS
    one["asked"]["image-key"] = one["asked"]["image-key"][: len(other["asked"]["image-key"])]
    assert list(one) == list(other) and list(one["asked"]) == list(other["asked"])
    assert steady(one, "resolved") == steady(other, "resolved")
    assert list(one["resolved"]) == list(other["resolved"])
    assert steady(one["resolved"]) == steady(other["resolved"])
    one, other = json.loads(found[summary]), json.loads(expected[summary])
    assert list(one) == list(other) and steady(one) == steady(other)
    assert one["last_command"].keys() == other["last_command"].keys() | {"start_seconds", "finished"}
    assert one["stage_seconds"].keys() == other["stage_seconds"].keys()


# ---- runs --------------------------------------------------------------------------------------------------


def test_a_run_that_an_earlier_version_began_is_finished_and_verified(store):
    store.put("begun")
    begun, whole = recorded("begun"), recorded("finished")
    summary = store.make("begun")
    missing = len(rows_of(whole)) - len(rows_of(begun))
    assert 0 < missing < summary["rows"] and summary["last_command"]["images"] == missing, (
        "what was done is not done again"
    )
    store.assert_exact("begun", summary)
    assert steady(summary) == steady(json.loads(whole["_run/summary.json"]))
    now = store.files("begun")
    assert now.items() >= begun.items(), "what was there is left alone"
    assert now.keys() == whole.keys()
    assert_same_rows(rows_of(now), rows_of(whole))


@pytest.mark.parametrize("record", ["finished", "compacted", "grown", "embedded"])
def test_a_finished_run_of_an_earlier_version_is_complete_and_verified(store, record):
    store.put(record)
    before = store.files(record)
    assert before == recorded(record)
    summary = store.make(record)
    assert summary == json.loads(before["_run/summary.json"])
    store.assert_exact(record, summary)
    assert store.files(record) == before


@pytest.mark.parametrize("record", ["compacted", "grown"])
def test_a_compacted_run_of_an_earlier_version_is_whole_without_its_small_files(store, record):
    """Leave what `compact --delete-small` of that version left: nothing in predictions/."""
    store.put(record)
    small = under("predictions", recorded(record))
    store.fs.rm([f"{BUCKET}/{record}/{path}" for path in small])
    before = store.files(record)
    assert small and not under("predictions", before)
    summary = store.make(record)
    assert summary == json.loads(before["_run/summary.json"]), "what is compacted is not labelled again"
    store.assert_exact(record, summary)
    assert store.files(record) == before


@pytest.mark.parametrize("record", ["finished", "grown"])
def test_a_run_of_an_earlier_version_is_updated(store, tmp_path, record):
    store.put(record)
    before, source = store.files(record), COMMANDS["runs"][record][1]
    new = write_tar(tmp_path / "new.tar", {"new.jpg": photo(99), "new.json": b"{}"})
    store.fs.pipe_file(f"{source}/new.tar", new.read_bytes())
    summary = store.make(record, "--update")
    assert summary["rows"] == json.loads(before["_run/summary.json"])["rows"] + 1
    assert summary["last_command"]["images"] == 1, "what was labelled is not labelled again"
    store.assert_exact(record, summary)
    after = store.files(record)
    assert len(under("predictions", after)) == len(under("predictions", before)) + 1
    assert len(under("_run/shards", after)) == len(under("_run/shards", before)) + 1
    ends = ("_run/manifest.parquet", "_run/summary.json")
    assert {path: after[path] for path in before if path not in ends} == {
        path: data for path, data in before.items() if path not in ends
    }, "what was there is left alone"


def test_errors_of_a_finished_run_of_an_earlier_version_are_tried_again(store):
    store.put("finished")
    before = store.files("finished")
    summary = store.make("finished", "--retry-errors", without="--max-pixels")
    assert summary["errors"] == {"missing_image": 1, "not_an_image": 1, "shard_truncated": 1}
    store.assert_exact("finished", summary)
    after = store.files("finished")
    assert after.keys() == before.keys()
    for row, old in zip(rows_of(after), rows_of(before), strict=True):
        if old["error"] == "too_many_pixels":
            assert row["error"] is None and row["label"] and (row["width"], row["height"]) == (200, 150)
            assert row["json"] == old["json"], "a sidecar is what it was"
        else:
            assert row == old


def test_a_finished_run_of_an_earlier_version_is_compacted_into_the_files_of_that_version(store):
    store.put("finished")
    before = store.files("finished")
    large = f"s3://{BUCKET}/large"
    done = store.do(["compact", f"s3://{BUCKET}/finished", "--output", large])
    assert done.exit_code == 0, done.stderr
    assert store.files("finished") == before, "the run itself is never changed"
    found = store.files("large")
    for folder in ("compacted", "_run/compacted"):
        tables, expected = (under(folder, files) for files in (found, added("compacted")))
        assert tables.keys() == expected.keys()
        for path in expected:
            assert table_of(tables[path]).equals(table_of(expected[path]), check_metadata=True), path
    store.assert_exact("large", json.loads(found["_run/summary.json"]))


@pytest.mark.parametrize("record", ["finished", "embedded"])
def test_the_same_command_makes_the_run_that_an_earlier_version_made(store, record):
    store.make(record, "--key-rule", "first-dot", output="again")
    found, expected = store.files("again"), recorded(record)
    assert_same_layout(found, expected)
    assert_same_rows(rows_of(found), rows_of(expected))


def test_commands_end_with_the_exit_codes_of_an_earlier_version(store):
    records = ("begun", "finished", "compacted", "grown", "uninterrupted")
    for record in records:
        store.put(record)
    for command in COMMANDS["exit_codes"]:
        done = store.do(command["arguments"])
        assert done.exit_code == command["exit_code"], (command["arguments"], done.stdout, done.stderr)
    assert all(store.files(record) == recorded(record) for record in records), "none of them changes anything"
    assert {command["exit_code"] for command in COMMANDS["exit_codes"]} == {0, 1, 2, 3}


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.long  # a training that goes on after a kill: tests/training
def test_a_training_that_an_earlier_version_began_goes_on_and_ends_as_there(store):
    """Go on from a checkpoint of the second of three epochs, to the figures of a training without a stop.

    What is random goes on with a training, so the figures are the same, as far as processors agree.
    """
    store.put("training")
    before, whole = recorded("training"), recorded("uninterrupted")
    snapshot = json.loads(before["_train/checkpoint_manager_snapshot.json"])
    name = snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
    step, epoch = map(int, re.fullmatch(r"step-(\d+)-epoch-(\d+)", name).groups())
    done = store.do(COMMANDS["runs"]["training"])
    assert done.exit_code == 0, done.stderr
    assert epoch == 1 and f"1 worker goes on from step {step} (epoch 2)" in done.stderr
    after = store.files("training")
    assert after["_train/settings.json"] == before["_train/settings.json"]
    epochs, expected = epochs_of(after), epochs_of(whole)
    assert [line["epoch"] for line in epochs] == [1, 2, 3], "none twice, none lost"
    for one, other in zip(epochs, expected, strict=True):
        assert one.keys() == other.keys()
        for figure in FIGURES:
            assert one[figure] == pytest.approx(other[figure], rel=2e-3), (one["epoch"], figure)
    assert weights_of(after) == weights_of(whole)
    about, other = (json.loads(files["config.json"]) for files in (after, whole))
    del other["extra"]["recipe"]  # a part of `settings`, which earlier versions wrote twice
    assert shape_of(about) == shape_of(other)


def epochs_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return what a training wrote down of its epochs."""
    lines = map(json.loads, files["metrics.jsonl"].splitlines())
    return [line for line in lines if line["kind"] == "epoch"]


def shape_of(value: Any) -> Any:
    """Return the keys of JSON, however deep."""
    return {name: shape_of(one) for name, one in value.items()} if isinstance(value, dict) else None


def weights_of(files: dict[str, bytes]) -> dict[str, list[int]]:
    """Return the sizes of a model folder's tensors."""
    size = int.from_bytes(files["model.safetensors"][:8], "little")
    header = json.loads(files["model.safetensors"][8 : 8 + size])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
