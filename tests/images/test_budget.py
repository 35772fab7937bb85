"""Slow images cost a bounded time together, and ordinary images of the same unit lose nothing by it."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import hostile
from tests.support.hostile import ordered
from tests.support.samples import encoded, photo, rows_of, units_of, write_tar
from wordsworth.pipeline.images import budget
from wordsworth.pipeline.images.budget import DecodeBudget
from wordsworth.pipeline.images.decode import DecodeSettings, decode_unit
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.sandbox import Sandbox, SandboxSettings
from wordsworth.vit_model.config import Preprocessing

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the sandbox's tests are Linux's"
)

LIMITS = DecodeLimits(max_pixels=25_000_000, timeout_s=1.5, slow_images_s=2.0, short_timeout_s=0.4)
SETTINGS = DecodeSettings(preprocessing=Preprocessing(), image_size=(32, 48), patch_size=8, limits=LIMITS)
LATE = "no pixels after 0.4 seconds: the 2 seconds that slow images of one file may take are used up"


@pytest.mark.slow
def test_many_images_that_hang_cost_their_budget_and_then_a_moment_each(tmp_path):
    good = [encoded(photo(n)) for n in range(12)]
    members = [(f"{n:02d}.jpg", data) for n, data in enumerate(good)]
    clean = decode_unit(units_of(write_tar(tmp_path / "clean.tar", members), rows=20)[0], SETTINGS)
    bad = [(name, ordered(data, "hang") if n % 2 else data) for n, (name, data) in enumerate(members)]
    (unit,) = units_of(write_tar(tmp_path / "bad.tar", bad), rows=20)
    signs = []
    sandbox = Sandbox(SandboxSettings(limits=LIMITS, script=Path(hostile.__file__)))
    begun = time.monotonic()
    found = decode_unit(unit, SETTINGS, sandbox=sandbox, alive=lambda: signs.append(time.monotonic()))
    seconds = time.monotonic() - begun
    sandbox.close()
    rows = rows_of([found])
    assert [row["error"] for row in rows] == [None, "decoder_timeout"] * 6
    assert [row["error_detail"] for row in rows[1::2]] == ["no pixels after 1.5 seconds"] * 2 + [LATE] * 4
    assert np.array_equal(found.payload, clean.payload[::2]), "no pixel of a good image differs"
    assert seconds < 2 * 1.5 + 4 * 0.4 + 6, f"{seconds} seconds, and 9 without a budget"


def test_ordinary_images_use_nothing_up_and_slow_ones_what_they_take_beyond(monkeypatch):
    clock = iter([100.0, 100.0, 100.9, 200.0, 204.0, 300.0, 307.0, 400.0, 400.5])
    monkeypatch.setattr(budget.time, "monotonic", lambda: next(clock))
    signs = []
    used = DecodeBudget(
        replace(LIMITS, timeout_s=30, slow_images_s=9, short_timeout_s=1), lambda: signs.append(1)
    )
    used._last_sign = next(clock)
    for slow_s, timeout_s in ((0, None), (3, None), (9, 1), (9, 1)):
        with used.one_image():
            pass
        assert used.slow_s == pytest.approx(slow_s) and used.timeout_s == timeout_s
    assert len(signs) == 3, "at 204, 307 and 400.5 seconds"


def test_the_usual_budget_is_less_than_the_time_in_which_a_run_counts_as_stalled():
    assert DecodeLimits().slow_images_s + 2 * DecodeLimits().timeout_s < 1800
