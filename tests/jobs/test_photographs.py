"""A tar set of 3,000 photographs through S/16."""

from collections import Counter

import pyarrow.parquet as pq
import pytest

from tests.support.builders import write_shards


@pytest.mark.long
def test_three_thousand_photographs_through_s16_are_three_thousand_rows(tmp_path, wordsworth):
    keys = write_shards(tmp_path / "shards", shards=12, images=250, size=(468, 401))
    command = [
        "label",
        tmp_path / "shards",
        "--output",
        tmp_path / "out",
        "--model",
        "S/16",
        "--allow-random-weights",
    ]
    done = wordsworth(*command, timeout=560)
    assert done.returncode == 0, done.stderr
    assert "RANDOM weights" in done.stderr
    found = pq.read_table(tmp_path / "out" / "predictions", columns=["key", "error"])
    assert Counter(found["key"].to_pylist()) == Counter(keys) and found["error"].null_count == 3000
    proof = wordsworth("verify", tmp_path / "out", "--source")
    assert proof.returncode == 0 and "3,000 samples counted in the source" in proof.stdout
