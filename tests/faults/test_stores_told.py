"""A store that does not answer the workers of a run is named while it is away, with node and process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.proxy import Faults
from tests.faults.servers import BUCKET, through
from tests.support.builders import write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

AWAY_S = 20.0


def events_of(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_store_that_is_away_is_named_with_node_and_process_and_again_when_it_answers(
    ceph, small_model, tmp_path
):
    write_shards(tmp_path / "shards", shards=12, images=500)
    out = f"s3://{BUCKET}/told-{os.getpid()}"
    log = tmp_path / "log"
    with through(ceph, Faults(delay=0.3)) as behind, open(log, "w") as stderr:
        options = json.dumps(behind.options)
        command = ["label", tmp_path / "shards", "--output", out, "--model", small_model, "--unit-rows", "50"]
        command += ["--storage-options", options, "--json", "--log-format", "json"]
        run = subprocess.Popen(
            [sys.executable, "-m", "wordsworth", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=Path(__file__).parents[2],
        )
        deadline = time.monotonic() + 240
        while behind.proxy.requests["PUT"] < 12:
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)  # until the first units are written
        behind.proxy.faults = Faults(reset=1.0)
        time.sleep(AWAY_S)  # as long as the store is away
        behind.proxy.faults = Faults()
        summary = json.loads(run.communicate(timeout=400)[0])
    assert run.returncode == 0 and summary["rows"] == 6000
    (tries,) = summary["last_command"]["store_retries"].values()
    assert tries >= 4, "every worker asks several times in twenty seconds"
    told = [event for event in events_of(log) if event["event"] == "store"]
    silent, well = told[0], told[-1]
    assert "does not answer" in silent["message"] and silent["node"] and silent["pid"] > 0
    assert silent["store"] == behind.options["endpoint_url"]
    assert 1 <= len([event for event in told if "does not answer" in event["message"]]) <= 4
    assert "answers again" in well["message"] and well["seconds"] >= AWAY_S / 2
