"""label without --output: this process labels a few images, as a run would, and writes nothing."""

import json

import pytest
import ray

from tests.support.builders import photo, write_shards, write_tar
from tests.support.labelling import rows, run
from wordsworth.jobs import cli
from wordsworth.pipeline.labeling import quick_look
from wordsworth.pipeline.labeling.quick_look import QuickLook
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.prediction.load_model import load_model


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(photo(number))
    (folder / "broken.jpg").write_bytes(b"none")
    return folder


@pytest.fixture
def without_ray(monkeypatch):
    """Let a test fail that starts Ray."""

    def refuse(*args, **kwargs):
        raise AssertionError("a look starts no Ray")

    monkeypatch.setattr(ray, "init", refuse)


def look(source, model, **more) -> tuple[list[dict], QuickLook]:
    request = LabelRequest(
        command="label", sources=(str(source),), output="", model="m", precision="fp32", **more
    )
    quick = QuickLook(request, load_model(str(model)), print)
    return [row for table in quick.rows() for row in table.to_pylist()], quick


def test_a_row_of_a_look_is_the_row_of_a_run(tmp_path, small_model, local_ray):
    data = {"a.jpg": photo(0), "a.txt": b"one", "b.jpg": b"none", "c.jpg": photo(2), "c.txt": b"three"}
    write_tar(tmp_path / "in" / "a.tar", data)
    run(tmp_path, load_model(str(small_model)), tmp_path / "in", keep=("txt",), embedding="float32")
    of_run = rows(tmp_path)
    of_look, _ = look(tmp_path / "in", small_model, keep=("txt",), embedding="float32")
    assert [row["label"] is None for row in of_look] == [False, True, False]
    for one, other in zip(of_look, of_run, strict=True):
        assert one.pop("score") == (other["score"] and pytest.approx(other["score"], abs=1e-6))
        assert one.pop("embedding") == (other["embedding"] and pytest.approx(other["embedding"], abs=1e-5))
        assert [entry["label_id"] for entry in one.pop("topk") or []] == [
            entry["label_id"] for entry in other["topk"] or []
        ]
        assert one == {name: other[name] for name in one}


@pytest.mark.parametrize("limit", [3, 4, None])
def test_a_look_says_whether_there_are_more_images(tmp_path, small_model, monkeypatch, limit):
    write_shards(tmp_path / "in", shards=2, images=4)
    monkeypatch.setattr(quick_look, "MAX_IMAGES", 8 if limit is None else 6)
    found, quick = look(tmp_path / "in", small_model, limit=limit)
    assert len(found) == quick.num_images == (limit or 8)
    assert quick.is_cut == (limit is not None)


def test_a_folder_is_not_read_beyond_what_is_shown(images, small_model, monkeypatch):
    monkeypatch.setattr(quick_look, "MAX_IMAGES", 2)
    found, quick = look(images, small_model)
    assert [row["key"] for row in found] == ["0.jpg", "1.jpg"] and quick.is_cut


@pytest.mark.usefixtures("without_ray")
def test_the_command_prints_a_table_or_lines_of_json_and_writes_nothing(
    images, small_model, tmp_path, monkeypatch, capsys
):
    (images / "two\x1b[31m.jpg").write_bytes(photo(2))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["label", str(images), "--model", str(small_model)]) == 0
    told = capsys.readouterr()
    first = told.out.splitlines()[0]
    assert first.split() == ["image", "label", "score", "next", "error"] and "\x1b" not in told.out
    assert "not_an_image" in told.out and "5 images in" in told.err and "--output OUT" in told.err
    assert cli.run(["label", f"{images}/0.jpg", "--model", str(small_model), "--json", "--embeddings"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["key"] == "0.jpg" and row["error"] is None and len(row["embedding"]) == 32
    assert sorted(tmp_path.rglob("*")) == before


def test_errors_over_the_allowed_rate_exit_with_3(images, small_model, capsys):
    assert cli.run(["label", str(images), "--model", str(small_model), "--max-error-rate", "0.2"]) == 3
    assert "25.00% of the rows have an error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    {
        "update": (["--update"], "--update: only with --output"),
        "report": (["--report"], "--report: only with --output"),
        "unread": (["--on-error", "fail"], "--on-error: only with --output"),
        "sample": (["--sample", "3"], "--sample: only with --output"),
        "cluster": (["--address", "auto"], "--address"),
        "vectors": (["--embeddings"], "add --json"),
    }.values(),
)
def test_what_is_for_a_run_that_is_written_is_refused(images, options, said, capsys):
    assert cli.run(["label", str(images), "--model", "nonesuch", *options]) == 2
    told = capsys.readouterr()
    assert said in told.err and not told.out


@pytest.mark.parametrize("output", [[], ["--output", "out"]])
def test_a_source_that_is_not_there_is_named_before_a_model_is_loaded(
    images, output, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = ["label", str(images), f"{images}/typo", "--model", "nonesuch", *output]
    assert cli.run(arguments) == 1
    assert f"nothing found at {images}/typo" in capsys.readouterr().err and not (tmp_path / "out").exists()
