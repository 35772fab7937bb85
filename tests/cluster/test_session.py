"""session: Ray is started safely, and what was changed in Ray is what it was afterwards."""

import os
import subprocess
import sys

import pytest

from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError


def test_ray_is_not_started_where_a_shard_could_run_code(monkeypatch):
    monkeypatch.setenv("RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION", "1")
    with pytest.raises(UserError, match="lets a shard run code: unset it"), ray_session():
        pytest.fail("it went on")


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "1"}])
def test_the_package_sets_safe_defaults_before_ray_can_be_imported_and_keeps_what_is_set(given):
    names = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "WDS_SECURE")
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    script = (
        f"import sys, os, wordsworth.pipeline; print([os.environ[n] for n in {names}], 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    expected = [given.get("RAY_AUTH_MODE", "token"), given.get("RAY_USAGE_STATS_ENABLED", "0"), "1"]
    assert done.stdout == f"{expected} False\n"
