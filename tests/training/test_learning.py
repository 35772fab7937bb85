"""Learning, not only running: the two-minute version of benchmarks/learning.py."""

from argparse import Namespace

import pytest

from benchmarks.learning import kept, supervised
from benchmarks.learning_data import read, write
from benchmarks.machine import write_rows


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # make demo trains on the same digits, and make test runs it
def test_handwriting_is_learnt_as_well_as_timms_model_in_a_plain_loop_learns_it(tmp_path):
    digits = write("digits", tmp_path / "digits")
    theirs, ours = supervised(digits, 0, tmp_path, read(digits.val, digits.image_size))
    assert theirs["accuracy"] > 95 and ours["accuracy"] > theirs["accuracy"] - 2, (theirs, ours)
    assert ours["steps"] == theirs["steps"]


def test_rows_of_arms_and_shots_that_are_not_measured_again_stay(tmp_path):
    arms = {"pretraining": ("scratch", "mae", "mae, avg"), "supervised": ("ours",)}
    rows = [
        {"part": part, "set": name, "arm": arm, "shots": few if part == "pretraining" else ""}
        for part, names in arms.items()
        for arm in names
        for name in ("signs", "shapes")
        for few in ("5", "30")
    ]
    write_rows(tmp_path / "table.csv", rows)
    options = Namespace(
        output=tmp_path / "table.csv",
        parts=["pretraining"],
        sets=["signs"],
        arms=["mae", "masked-patch"],
        pool="avg-norm",
    )
    gone = {"part": "pretraining", "set": "signs", "arm": "mae", "shots": "5"}
    assert kept(options) == [row for row in rows if row != gone], "signs has 5 and 10 a class"
    options.pool = "avg"
    assert kept(options) == [row for row in rows if row != gone | {"arm": "mae, avg"}], "a head has its rows"
    options.parts = ["supervised"]
    assert kept(options) == [row for row in rows if (row["part"], row["set"]) != ("supervised", "signs")]
