"""Check the stores of the tests: what they promise is what a test of ours may rely on."""

import pytest

from tests.faults import servers
from tests.faults.servers import BUCKET, served
from wordsworth.pipeline.storage.atomic import put_if_absent
from wordsworth.pipeline.storage.filesystem import open_filesystem


@pytest.fixture(params=["ceph", "azurite"])
def store(request):
    return request.getfixturevalue(request.param)


def test_a_store_with_conditions_keeps_the_first_of_two_objects(store):
    fs, path = open_filesystem(f"{store.root}/servers/object", store.options)
    assert put_if_absent(fs, path, b"first") is True
    assert put_if_absent(fs, path, b"other") is False
    assert fs.cat_file(path) == b"first"


@pytest.mark.long
def test_a_ceph_that_was_killed_has_every_object_that_it_acknowledged():
    for store in served(lambda: servers.ceph(durable=True)):
        fs, root = open_filesystem(f"s3://{BUCKET}/killed", store.options)
        for number in range(50):
            fs.pipe_file(f"{root}/{number}", bytes([number]) * 3000)
        store.ceph.kill()
        store.ceph.start_again()
        for number in range(50):
            assert fs.cat_file(f"{root}/{number}") == bytes([number]) * 3000
