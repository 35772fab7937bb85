"""Run every block of docs/python.md, and the notebook beside it, and check what they give."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wordsworth
from tests.support.builders import photo, write_tar
from tests.support.page_blocks import blocks_of, run_blocks
from wordsworth.pipeline.images.sandbox import close_process_sandbox

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "wordsworth.ipynb"
LABELS = ("ant", "bee", "cat", "dog", "elk")


def labels_images(names: dict) -> None:
    assert names["row"]["topk"][0]["label"] == names["row"]["label"] in LABELS
    assert [row["error"] for row in names["rows"]] == [None, None, "not_an_image"]


def shows_attention(names: dict) -> None:
    assert names["share"].shape == (4, 4) and names["heat"].getextrema()[1] == 255
    assert Image.open("attention.png").size == (32, 32)


def reads_rows(names: dict) -> None:
    assert names["table"].num_rows == 7 and set(names["table"]["cls"].to_pylist()) == {"1", None}


def gives_the_reason(names: dict) -> None:
    with pytest.raises(wordsworth.pipeline.errors.UserError, match="no-such-run holds no run"):
        wordsworth.open_run("no-such-run")


CHECKS = {
    "wordsworth: load a model": lambda names: names["model"].config.image_size == (32, 32),
    "wordsworth: label images": labels_images,
    "wordsworth: an image that is in memory": lambda names: len(names["same"]) == 3,
    "wordsworth: embeddings": lambda names: names["vectors"].shape == (2, 32),
    "wordsworth: where the model looks": shows_attention,
    "wordsworth: the torch module": lambda names: names["logits"].shape == (2, 5),
    "wordsworth: label every image, each exactly once": lambda names: names["run"].summary.rows == 7,
    "wordsworth: read the rows, now or later": reads_rows,
    "wordsworth: fetch images again": lambda names: names["size"] == (96, 72),
    "wordsworth: a page about the run": lambda names: Path("labels/report.html").is_file(),
    "wordsworth: build, save and load a Vision Transformer": lambda names: (
        wordsworth.load_model("tiny").config.num_classes == 10 == names["checkpoint"].config.num_classes
    ),
    "wordsworth: what cannot be used raises UserError, in one line": gives_the_reason,
}


def passing(check):
    """Return the check as one that fails where it returns False."""

    def run(names: dict) -> None:
        assert check(names) is not False

    return run


@pytest.fixture
def folder(tmp_path, small_model, monkeypatch) -> Path:
    shutil.copytree(small_model, tmp_path / "model")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(photo(1))
    (tmp_path / "photos" / "dog.png").write_bytes(photo(2, (60, 90), "PNG"))
    (tmp_path / "photos" / "notes.jpg").write_text("these are words")
    members = {f"{number}.jpg": photo(number) for number in range(6)}
    write_tar(tmp_path / "shards" / "a.tar", {**members, "7.jpg": b"no image", "7.cls": b"1"})
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    close_process_sandbox()


def test_every_block_has_a_check():
    assert [block.title for block in blocks_of(PAGE)] == list(CHECKS)


@pytest.mark.ray
def test_the_blocks_of_the_page_do_what_it_says(folder, local_ray, capsys):
    run_blocks(blocks_of(PAGE), {title: passing(check) for title, check in CHECKS.items()})
    said = capsys.readouterr().out
    assert "not_an_image" in said and "no-such-run holds no run" in said and "torch.Size([1, 10])" in said


def test_the_page_names_every_public_name():
    text = PAGE.read_text()
    import wordsworth.vit_model

    missing = [name for name in (*wordsworth.__all__, *wordsworth.vit_model.__all__) if name not in text]
    assert missing == []


# ---- the notebook -----------------------------------------------------------------------------------------


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_one_and_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    for code in code_cells():
        ast.parse(code)


@pytest.mark.ray
def test_the_notebook_runs_and_its_model_reads_digits(tmp_path):
    """Run the cells in their order in a process of its own, in an empty folder."""
    seen = "import json; print(json.dumps([accuracy, run.summary.rows, share.shape]))"
    (tmp_path / "cells.py").write_text("\n\n".join([*code_cells(), seen]))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy, num_rows, shape = json.loads(done.stdout.splitlines()[-1])
    assert accuracy > 0.8 and num_rows == 360 and shape == [4, 4]
    assert np.asarray(Image.open(tmp_path / "digits" / "attention.png")).std() > 0
