"""Put a hub on loopback in place of the real one, for all tests of other people's formats."""

import pytest

from tests.support.hub import use_hub


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """A function that lets huggingface_hub use an endpoint, with an empty cache."""
    return lambda endpoint: use_hub(monkeypatch, endpoint, tmp_path / "cache")
