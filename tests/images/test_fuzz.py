"""fuzz: a damaged image gives pixels or a named refusal, and the decoder outlives all of them."""

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz, mutant, originals, outcome
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.sandbox import Sandbox, SandboxSettings

CODES = {
    "image",
    "empty",
    "not_an_image",
    "truncated",
    "corrupt",
    "too_many_pixels",
    "unsupported_format",
    "unsupported_mode",
    "out_of_memory",
}
REGRESSIONS = sorted(Path(__file__).with_name("regressions").glob("*"))


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(SandboxSettings(limits=DecodeLimits(max_pixels=10_000_000, timeout_s=60.0)))
    yield made
    made.close()


@pytest.mark.slow
def test_the_originals_are_sound_and_a_seed_gives_the_same_mutants(sandbox):
    sound = originals()
    assert {name for name, data in sound.items() if outcome(sandbox, data) != "image"} == set()
    once, again = (
        [mutant(data, random.Random(f"1|{name}")) for name, data in sound.items()] for _ in range(2)
    )
    assert once == again and all(data not in once for data in sound.values())


def test_a_damaged_image_is_a_picture_or_a_named_refusal_and_the_decoder_lives(sandbox):
    counts = sum(fuzz(390, 1, sandbox, None).values(), Counter())
    assert set(counts) <= CODES and counts.total() == 390
    assert 30 < counts["image"] < 360, "the damage must neither always nor never matter"
    assert counts["out_of_memory"] == sandbox.restarts - 1, "a decoder ended that should not have"
    for path in REGRESSIONS:  # images that once ended the decoder: today whatever they are, they are one row
        assert outcome(sandbox, path.read_bytes()) in {*CODES, "decoder_crashed", "decoder_timeout"}
        assert outcome(sandbox, originals()["jpeg"]) == "image"
