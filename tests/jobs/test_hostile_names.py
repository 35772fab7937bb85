"""Names that are made to do harm: they are data in every file that is written, and text on every terminal."""

import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.builders import photo, write_tar
from wordsworth.jobs.cli import run
from wordsworth.pipeline.errors import shown
from wordsworth.vit_model.model_folder import load_folder, save_folder

ESC = "\x1b]0;owned\x07\x1b[2J\x9b31m"
KEYS = [
    "../../escape",
    "/absolute",
    f"a{ESC}b",
    "new\nline\rback",
    "=cmd|' /C calc'!A0",
    "\u202egpj.exe\u2066",
    "[red]:warning:[/]",
    "k" * 10_000,
]
TARS = ["b::c", f"t{ESC}", "new\nline", "=1+1", "\u202ert", "[bold]:on:[/]", "s3:x", "pipe:ls"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_model):
    """A model whose classes have odd names."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    names = tuple(f"{name}.{ESC}" for name in ("[red]a", ":warning:", "=c()", "d", "e"))
    made = load_folder(small_model)
    made.labels = names
    save_folder(folder, made)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Tars of odd names, of which one has all odd keys, and one is cut; a table beside them."""
    made = tmp_path / "in"
    for number, name in enumerate(TARS):
        write_tar(made / f"{name}.tar", {f"{number}.jpg": photo(number)})
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, key in enumerate(KEYS):
            for ending, content in (("jpg", photo(number)), ("json", json.dumps({"k": key}).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (made / "keys.tar").write_bytes(data.getvalue())
    (made / f"cut{ESC}.tar").write_bytes(data.getvalue()[:-20_000])
    return made


def assert_tame(capfd) -> str:
    """Return what a command wrote, once no character of it does anything but stand there."""
    stdout, stderr = capfd.readouterr()
    text = stdout + stderr
    assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
    assert all(len(line) < 10_000 for line in text.splitlines())
    return text


def rows_of(out) -> list[dict]:
    return pq.read_table(out / "predictions").to_pylist()


@pytest.mark.slow
def test_odd_names_are_data_in_the_files_and_text_on_the_terminal(local_ray, tmp_path, folder, model, capfd):
    out = tmp_path / "out"
    command = ["label", str(folder), "--output", str(out), "--model", str(model), "--keep", "json"]
    assert run([*command, "--max-error-rate", "1"]) == 0
    told = assert_tame(capfd)
    assert "1 shard_truncated" in told
    rows = rows_of(out)
    keys = {row["key"] for row in rows if row["shard"].endswith("/keys.tar")}
    assert any(ESC in key for key in keys) and "../../escape" in keys and "k" * 10_000 in keys
    assert len(keys) == len(KEYS)
    shards = {row["shard"] for row in rows}
    assert {f"{folder}/{name}.tar" for name in TARS} < shards, "each is read, b::c.tar and s3:x.tar too"
    assert all(ESC in row["label"] for row in rows if row["error"] is None)
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert all(name.isascii() and name.isprintable() for name in written), "names of files are ours"
    assert not (tmp_path / "escape.parquet").exists()
    assert run(["verify", str(out), "--source"]) == 0
    assert "samples counted in the source" in assert_tame(capfd)
    assert run(["verify", str(out), "--source", "--json"]) == 0
    json.loads(capfd.readouterr().out)


def test_findings_with_odd_names_are_text(folder, capfd):
    assert run(["lint", str(folder)]) == 3
    told = assert_tame(capfd)
    assert shown(ESC) in told and "truncated" in told
    assert run(["lint", str(folder), "--json"]) == 3
    found = json.loads(capfd.readouterr().out)
    assert found["shards"] == len(TARS) + 2 and not found["unreadable"]


@pytest.mark.slow
def test_a_run_that_ends_at_an_error_names_it_as_text(local_ray, tmp_path, folder, model, capfd):
    cut = [path for path in folder.iterdir() if path.name.startswith("cut")]
    write_tar(cut[0], {f"{ESC}\n[red]:on:.jpg": b"no image"})
    out = str(tmp_path / "out")
    command = ["label", str(cut[0]), "--output", out, "--model", str(model), "--on-error", "fail"]
    assert run(command) == 1
    told = assert_tame(capfd)
    assert shown(ESC) in told and "not_an_image" in told
    assert len([line for line in told.splitlines() if " wordsworth: " in line]) == 1


@pytest.mark.slow
def test_a_plan_and_an_evaluation_with_odd_names_are_text(local_ray, tmp_path, folder, model, capfd):
    assert run(["plan", str(folder), "--model", str(model), "--seconds", "0.2", "--device", "cpu"]) == 0
    assert_tame(capfd)
    labels = load_folder(model).labels
    members = {}
    for number in range(10):
        members |= {f"{number}.jpg": photo(number), f"{number}.cls": labels[number % 5].encode()}
    write_tar(tmp_path / f"e{ESC}.tar", members)
    command = ["evaluate", str(tmp_path / f"e{ESC}.tar"), "--model", str(model)]
    assert run(command) == 0
    told = assert_tame(capfd)
    assert "worst classes" in told and ":warning:" in told and "[red]a" in told


def test_classes_that_are_folders_of_odd_names_are_packed_as_text(tmp_path, capfd):
    for number, name in enumerate((f"c{ESC}", "=1+1", "cafe\u0301", "caf\u00e9")):
        place = tmp_path / "in" / name
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / f"{number}\x1b[31m.png")
    assert run(["pack", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert "packed 4 images of 3 classes" in assert_tame(capfd)
    assert all(path.name.isascii() for path in (tmp_path / "out").iterdir())
