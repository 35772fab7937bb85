"""session: Ray is started safely, and what was changed in Ray is what it was afterwards."""

import os
import re
import subprocess
import sys

import pytest

from wordsworth.pipeline.cluster import session
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError


def test_ray_is_not_started_where_a_shard_could_run_code(monkeypatch):
    monkeypatch.setenv("RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION", "1")
    with pytest.raises(UserError, match="lets a shard run code: unset it"), ray_session():
        pytest.fail("it went on")


@pytest.mark.parametrize("given", [{}, {"RAY_USAGE_STATS_ENABLED": "1"}])
def test_the_package_sets_safe_defaults_before_ray_can_be_imported_and_keeps_what_is_set(given):
    names = ("RAY_USAGE_STATS_ENABLED", "WDS_SECURE")
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    script = (
        f"import sys, os, wordsworth.pipeline; print([os.environ[n] for n in {names}], 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    expected = [given.get("RAY_USAGE_STATS_ENABLED", "0"), "1"]
    assert done.stdout == f"{expected} False\n"


@pytest.mark.parametrize(("said", "mode"), [(None, "token"), ("token", "token"), ("disabled", "disabled")])
def test_a_ray_that_is_started_here_asks_for_a_token_unless_the_environment_says_otherwise(
    monkeypatch, said, mode
):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if said:
        monkeypatch.setenv("RAY_AUTH_MODE", said)
    with session._own_token():
        assert os.environ["RAY_AUTH_MODE"] == mode and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ.get("RAY_AUTH_MODE") == said and "RAY_AUTH_TOKEN" not in os.environ


@pytest.fixture
def starts(monkeypatch):
    """Stand for Ray's starts: how each ends, an exception or None, taken from the list by each start."""
    ends: list[Exception | None] = []

    def init(**options):
        end = ends.pop(0)
        if end is not None:
            raise end

    monkeypatch.setattr(session, "_init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the local Ray of other tests goes on
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    return ends


SLOW = Exception("The current node timed out during startup. This could happen because ...\nand more")


def test_a_start_that_a_busy_machine_made_fail_is_tried_once_more(starts):
    starts[:] = [SLOW, None]
    session._start()
    assert starts == []


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        (
            [SLOW, SLOW],
            r"cannot start a local Ray twice: The current node .* \.\.\. \(is this .*\?\)",
        ),
        (
            [OSError("AF_UNIX path length cannot exceed 107 bytes: /long")],
            r"cannot start a local Ray: AF_UNIX .* \(set RAY_TMPDIR to a folder with a shorter name\)",
        ),
    ],
)
def test_a_start_that_fails_is_one_line(starts, ends, line):
    starts[:] = ends
    with pytest.raises(UserError) as caught:
        session._start()
    assert re.fullmatch(line, str(caught.value))
    assert starts == []
