"""The demo: the whole story, as `make demo` runs it."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from wordsworth.jobs.demo import DIGITS, HELD_OUT, write_digits


def test_the_digits_are_those_of_scikit_learn(tmp_path):
    images, classes = load_digits(return_X_y=True)
    with np.load(DIGITS) as digits:
        np.testing.assert_array_equal(digits["images"].reshape(-1, 64), images)
        np.testing.assert_array_equal(digits["digits"], classes)
    write_digits(tmp_path, seed=0)
    files = {path.name: path for path in tmp_path.rglob("*.png")}
    assert len(files) == len(images) == len(list((tmp_path / "train").rglob("*.png"))) + HELD_OUT
    for number in (0, 1000, 1796):
        file = files[f"{number:04d}.png"]
        assert file.parent.name == str(classes[number])
        expected = np.round(images[number].reshape(8, 8) * 255 / 16)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected)


def test_the_source_and_the_licence_of_the_digits_stand_beside_them():
    text = DIGITS.with_suffix(".md").read_text()
    assert "UCI Machine Learning Repository" in text and "CC BY 4.0" in text


@pytest.mark.ray
@pytest.mark.long
def test_the_demo_learns_real_handwriting_and_labels_what_was_held_out(tmp_path, wordsworth):
    done = wordsworth(
        "demo", timeout=500, cwd=tmp_path
    )  # into ./demo: relative paths must mean the same in every worker
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = float(re.search(r"held-out accuracy\s+([\d.]+)", done.stdout)[1])
    rows = pq.read_table(tmp_path / "demo" / "labels" / "predictions").to_pylist()
    assert len(rows) == 360 and accuracy >= 0.97
    assert accuracy == round(sum(row["label"] == row["cls"] for row in rows) / 360, 4), (
        "the table is what the Parquet says"
    )
    assert "exact: 360 rows" in done.stdout and "360 samples counted in the source" in done.stdout
    for report in ("demo/labels/report.html", "demo/model/report.html"):
        assert f"{report}: " in done.stdout and (tmp_path / report).stat().st_size > 10_000
    lines = (tmp_path / "demo" / "model" / "metrics.jsonl").read_text().splitlines()
    epochs = [line for line in map(json.loads, lines) if line["kind"] == "epoch"]
    assert len(epochs) == 40 and epochs[-1]["val_accuracy"] == pytest.approx(accuracy, abs=0.01)
    again = wordsworth("demo", "--output", tmp_path / "demo")
    assert again.returncode == 1 and "is not empty: remove it" in again.stderr
