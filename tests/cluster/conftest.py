"""Fixtures of the tests that start, join and leave Rays."""

import pytest

from wordsworth.pipeline.cluster.ray_internals import auth_mode


@pytest.fixture(autouse=True)
def ray_shows_its_token_again():
    """After each test, show a token as before: the local Ray of other tests in this process asks for it."""
    with auth_mode("token"):
        yield
