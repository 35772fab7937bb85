"""Fixtures of the tests of storage."""

from types import SimpleNamespace

import pytest

from tests.support.stores import s3_bucket


@pytest.fixture
def bucket():
    with s3_bucket() as made:
        yield made


@pytest.fixture
def waits(monkeypatch):
    """Collect the seconds that the retries would have waited."""
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited
