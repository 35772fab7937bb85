"""Learning, not only running: the two-minute version of benchmarks/learning.py."""

import pytest

from benchmarks.learning import supervised
from benchmarks.learning_data import read, write


@pytest.mark.usefixtures("local_ray")
@pytest.mark.long  # make demo trains on the same digits, and make test runs it
def test_handwriting_is_learnt_as_well_as_timms_model_in_a_plain_loop_learns_it(tmp_path):
    digits = write("digits", tmp_path / "digits")
    theirs, ours = supervised(digits, 0, tmp_path, read(digits.val, digits.image_size))
    assert theirs["accuracy"] > 95 and ours["accuracy"] > theirs["accuracy"] - 2, (theirs, ours)
    assert ours["steps"] == theirs["steps"]
