"""secrets: keys, tokens and signatures of the user stand in nothing that a command writes, says or starts."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.servers import KEY, SECRET, Backend, rclone, served
from tests.support.builders import photo, write_shards, write_tar
from tests.support.trainings import write_classes
from tests.support.watching import Watched, watched
from tests.support.web import files_server

pytestmark = [pytest.mark.ray, pytest.mark.server]

SIGNATURE = "CANARYsignature"  # in the query of a signed address
PASSWORD = "CANARYpassword"  # in the user-info of an address
# Exported by the user, as for stores that a command does not even read.
EXPORTED = {
    "HF_TOKEN": "hf_CANARYhubtoken",
    "AZURE_STORAGE_KEY": "CANARYazurekey==",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=CANARYconnection==",
    "AWS_SECRET_ACCESS_KEY": "CANARYawssecret",
    "AWS_ACCESS_KEY_ID": "AKNOTUSED",
    "GOOGLE_API_KEY": "CANARYgooglekey",
}
CANARIES = (SECRET, "CANARY")
TINY = ("--width", "32", "--depth", "2", "--heads", "2", "--patch-size", "8", "--image-size", "32")


def hits(texts: dict[str, str | bytes]) -> list[str]:
    """Return where a secret stands: the name of the text and some characters around."""
    found = []
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        for canary in CANARIES:
            at = data.find(canary.encode())
            if at >= 0:
                found.append(f"{name}: {data[max(0, at - 60) : at + 60]!r}")
    return found


def texts_of(seen: Watched) -> dict[str, str | bytes]:
    """Return all that was seen of a command but its own arguments, which the user wrote."""
    return {
        "stdout": seen.done.stdout,
        "stderr": seen.done.stderr,
        "arguments of processes": "\n".join(seen.arguments),
        "environments of decoders": json.dumps(seen.decoders),
        **seen.files,
    }


def objects_under(root: str, options: dict) -> dict[str, str | bytes]:
    """Return every file below a place, and of Parquet also all values and metadata as text."""
    fs, path = fsspec.core.url_to_fs(root, **options)
    texts: dict[str, str | bytes] = {}
    for name in fs.find(path):
        data = fs.cat_file(name)
        texts[name] = data
        if name.endswith(".parquet"):
            file = pq.ParquetFile(io.BytesIO(data))
            texts[f"values of {name}"] = str(file.read().to_pylist())
            texts[f"metadata of {name}"] = f"{file.metadata.metadata} {file.schema_arrow.metadata}"
    return texts


def run(*arguments: object, env: dict[str, str], code: int = 0) -> dict[str, str | bytes]:
    """Run a command and return what it said."""
    command = [sys.executable, "-m", "wordsworth", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **env})
    assert done.returncode == code, done.stderr
    return {"stdout": done.stdout, "stderr": done.stderr}


@pytest.fixture(scope="module")
def store() -> Iterator[Backend]:
    """A store that refuses every request without its secret."""
    yield from served(rclone)


@pytest.fixture(scope="module")
def config(store, tmp_path_factory) -> Path:
    """A file of options with the secret of the store."""
    path = tmp_path_factory.mktemp("config") / "options.toml"
    path.write_text(f"storage_options = {json.dumps(json.dumps(store.options))}\n")
    path.chmod(0o600)
    return path


def put(store: Backend, folder: Path, prefix: str) -> str:
    fs = fsspec.filesystem("s3", **store.options)
    for path in sorted(folder.iterdir()):
        fs.pipe_file(f"{store.root}/{prefix}/{path.name}", path.read_bytes())
    return f"{store.root}/{prefix}"


@pytest.fixture(scope="module")
def labelled(store, small_model, tmp_path_factory) -> Watched:
    """A run with a bad image from and to the store, its secret in the user's own arguments."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, shards=2, images=4)
    write_tar(folder / "bad.tar", {"bad.jpg": photo(1)[:200]})
    source = put(store, folder, "shards")
    command = ("label", source, "--output", f"{store.root}/out", "--model", small_model)
    return watched(*command, "--storage-options", json.dumps(store.options), env=EXPORTED)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory) -> Watched:
    """A training by two workers from and to the store, its secret in the user's file of credentials."""
    folder = tmp_path_factory.mktemp("classes")
    write_classes(folder, shards=2, images=16)
    source = put(store, folder, "classes")
    credentials = tmp_path_factory.mktemp("aws") / "credentials"
    credentials.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    chain = {
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_ENDPOINT_URL": store.options["endpoint_url"],
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    others = {name: value for name, value in EXPORTED.items() if not name.startswith("AWS_")}
    options = ("--epochs", 1, "--batch-size", 8, "--target", "cls", "--workers", 2)
    return watched(
        "pretrain", source, "--output", f"{store.root}/model", *TINY, *options, env={**others, **chain}
    )


def test_a_secret_in_a_compressed_value_or_in_metadata_would_be_found(tmp_path):
    values = pa.table({"key": [f"{n}?{SIGNATURE}" for n in range(1000)]})
    pq.write_table(values, tmp_path / "values.parquet", compression="zstd")
    plain = pa.table({"key": ["a"]}).replace_schema_metadata({"from": SIGNATURE})
    pq.write_table(plain, tmp_path / "metadata.parquet")
    found = " ".join(hits(objects_under(str(tmp_path), {})))
    assert "values of" in found and "metadata of" in found


def test_a_run_writes_and_says_no_secret(labelled, store):
    assert labelled.done.returncode == 0, labelled.done.stderr
    assert len(labelled.files) > 20 and any(labelled.files.values()) and labelled.decoders
    assert any("raylet" in command for command in labelled.arguments)
    found = objects_under(f"{store.root}/out", store.options)
    assert any("values of" in name and "truncated" in str(text) for name, text in found.items())
    assert hits(texts_of(labelled)) == []
    assert hits(found) == []


@pytest.mark.long
def test_a_training_writes_and_says_no_secret(trained, store):
    assert trained.done.returncode == 0, trained.done.stderr
    found = objects_under(f"{store.root}/model", store.options)
    assert any("events.out" in name for name in found)
    assert hits(texts_of(trained)) == []
    assert hits(found) == []


@pytest.mark.parametrize("name", ["labelled", pytest.param("trained", marks=pytest.mark.long)])
def test_the_processes_of_a_run_listen_on_loopback_alone(name, request):
    seen = request.getfixturevalue(name)
    assert {ip for ip, _ in seen.listening} <= {"127.0.0.1", "::1"}, seen.listening
    assert {"gcs_server", "raylet"} <= {name for _, name in seen.listening}


@pytest.mark.parametrize("name", ["labelled", pytest.param("trained", marks=pytest.mark.long)])
def test_the_session_folder_of_a_run_is_closed_to_others_and_removed(name, request):
    seen = request.getfixturevalue(name)
    assert seen.modes == {0o700} and seen.left == []


def test_no_command_says_a_secret_or_writes_one(labelled, store, config, small_model, tmp_path):
    out, image = f"{store.root}/out", f"{store.root}/loose.jpg"
    fsspec.filesystem("s3", **store.options).pipe_file(image, photo(1))
    explained = ("--model", small_model, "--output", f"{store.root}/explained")
    said = {
        "explain": run("explain", image, *explained, "--config", config, env=EXPORTED),
        "verify": run("verify", out, "--source", "--config", config, env=EXPORTED),
        "lint": run("lint", f"{store.root}/shards", "--config", config, env=EXPORTED),
        "show": run("show", out, "--json", "--output", tmp_path / "images", "--config", config, env=EXPORTED),
        "compact": run("compact", out, "--output", f"{store.root}/large", "--config", config, env=EXPORTED),
    }
    page = ("--output", tmp_path / "diff.html")
    said["diff"] = run("diff", out, f"{store.root}/large", *page, "--config", config, env=EXPORTED)
    assert hits({f"{name} {stream}": text for name in said for stream, text in said[name].items()}) == []
    assert hits(objects_under(f"{store.root}/large", store.options)) == []
    assert len(said["show"]["stdout"].splitlines()) == 9 and hits(objects_under(str(tmp_path), {})) == []
    figures = objects_under(f"{store.root}/explained", store.options)
    assert hits(figures) == [] and any(name.endswith("/explain.html") for name in figures)


@pytest.mark.long
def test_no_other_command_says_a_secret_or_writes_one(trained, store, config, small_model):
    source, model = f"{store.root}/shards", f"{store.root}/model"
    failing = ("label", source, "--output", f"{store.root}/failing", "--model", small_model)
    classes = (f"{store.root}/classes", "--model", model, "--target", "cls")
    commands = {
        "plan": ("plan", source, "--model", small_model, "--output", f"{store.root}/planned"),
        "failing": (*failing, "--on-error", "fail", "--debug"),
        "evaluate": ("evaluate", *classes, "--output", f"{store.root}/evaluated"),
    }
    for name, command in commands.items():
        seen = watched(*command, "--config", config, env=EXPORTED)
        assert (seen.done.returncode == 0) is (name != "failing"), seen.done.stderr
        assert hits(texts_of(seen)) == []
    for folder in ("planned", "failing", "evaluated"):
        assert hits(objects_under(f"{store.root}/{folder}", store.options)) == []


def test_no_error_says_a_secret(store, small_model):
    """The store refuses the secret; the traceback of --debug has the names of values and not the values."""
    wrong = json.dumps({**store.options, "secret": "CANARYwrong"})
    command = ("label", f"{store.root}/shards", "--output", "s3://nowhere/out", "--model", small_model)
    said = run(*command, "--storage-options", wrong, "--debug", env=EXPORTED, code=1)
    assert said["stderr"]
    assert hits(said) == []


def test_a_signature_and_a_password_of_an_address_stand_nowhere(small_model, tmp_path):
    """A signed source: a table of signed addresses, one of which is gone, one with a user-info."""
    files: dict[str, bytes | int] = {"good.jpg": photo(1), "secret.jpg": 403}
    with files_server(files) as web:
        host = web.address.removeprefix("http://")
        names = ("good.jpg", "gone.jpg", "secret.jpg")
        rows = [f"{web.address}/{name}?X-Amz-Signature={SIGNATURE}" for name in names]
        rows.append(f"http://user:{PASSWORD}@{host}/good.jpg")
        files["table.csv"] = "\n".join(["url", *rows]).encode()
        source = f"{web.address}/table.csv?X-Amz-Signature={SIGNATURE}"
        allowed = ("--allow-http", "--allow-uris", f"{web.address}/")
        command = ("label", source, "--output", tmp_path / "out", "--model", small_model, *allowed)
        seen = watched(*command, env=EXPORTED)
        signed = [path for path in web.paths if path.endswith(SIGNATURE)]
    assert seen.done.returncode == 0, seen.done.stderr
    assert len({path.partition("?")[0] for path in signed}) == 4  # the secret was used
    found = objects_under(str(tmp_path / "out"), {})
    assert hits(texts_of(seen)) == []
    assert hits(found) == []
