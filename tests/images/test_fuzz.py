"""Damage at random: every damaged image is a picture or a named refusal, and the decoder outlives them all."""

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz, mutant, originals, outcome
from wordsworth.pipeline.images.sandbox import Guard, GuardSettings

CODES = {
    "picture",
    "empty",
    "not_an_image",
    "truncated",
    "corrupt",
    "too_many_pixels",
    "unsupported_mode",
    "out_of_memory",
}
REGRESSIONS = sorted(Path(__file__).with_name("regressions").glob("*"))


@pytest.fixture(scope="module")
def guard():
    made = Guard(GuardSettings(10_000_000, 65_500, 60.0))
    yield made
    made.close()


def test_the_originals_are_sound_and_a_seed_gives_the_same_mutants(guard):
    sound = originals()
    assert {name for name, data in sound.items() if outcome(guard, data) != "picture"} == set()
    once, again = (
        [mutant(data, random.Random(f"1|{name}")) for name, data in sound.items()] for _ in range(2)
    )
    assert once == again and all(data not in once for data in sound.values())


def test_a_damaged_image_is_a_picture_or_a_named_refusal_and_the_decoder_lives(guard):
    counts = sum(fuzz(315, 1, guard, None).values(), Counter())
    assert set(counts) <= CODES and counts.total() == 315
    assert 30 < counts["picture"] < 285, "the damage must neither always nor never matter"
    assert counts["out_of_memory"] == guard.restarts - 1, "a decoder ended that should not have"
    for path in REGRESSIONS:  # images that once ended the decoder: today whatever they are, they are one row
        assert outcome(guard, path.read_bytes()) in {*CODES, "decoder_crashed", "decoder_timeout"}
        assert outcome(guard, originals()["jpeg"]) == "picture"
