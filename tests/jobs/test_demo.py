"""The demo: the whole story, as `make demo` runs it."""

import re

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.ray


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
    again = wordsworth("demo", "--output", tmp_path / "demo")
    assert again.returncode == 1 and "is not empty: remove it" in again.stderr
