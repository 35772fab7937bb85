"""store_view: two processes with the same view of a place read and write the same store."""

import json

import pytest

from wordsworth.pipeline.storage import store_view
from wordsworth.pipeline.storage.store_view import difference, view_of_object, view_of_record

HERE = {"store": "s3", "endpoint": "http://a", "region": "r", "credentials": "keys in the environment"}
SEEN = {"size": "3", "version": "e"}


def test_a_file_is_seen_by_its_size_and_time_and_a_record_by_its_bytes(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    before = view_of_object(str(file), {})
    assert before == view_of_object(str(file), {}) and before["size"] == "3"
    assert before["store"] == store_view.LOCAL
    record = view_of_record(str(file), {})
    file.write_bytes(b"two")
    assert view_of_record(str(file), {}) != record


def test_what_cannot_be_seen_is_an_error_of_the_view_and_no_exception(tmp_path):
    assert view_of_object(str(tmp_path / "none"), {})["error"] == "it is not there"
    assert "s4" in view_of_record("s4://bucket/x", {})["error"]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_view(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"one")
    monkeypatch.setattr(store_view.os, "access", lambda *_: False)
    assert view_of_record(str(file), {}, str(tmp_path))["error"] == "no right to write there"


def test_a_store_is_tried_by_an_object_that_is_removed(bucket):
    bucket.objects["b/plan.json"] = b"{}"
    view = view_of_record("s3://b/plan.json", {}, "s3://b/out")
    assert "error" not in view and list(bucket.objects) == ["b/plan.json"]


@pytest.mark.parametrize(
    ("there", "line"),
    [
        (HERE | SEEN, None),
        (
            HERE | SEEN | {"endpoint": "http://b"},
            "asks another store for the output (endpoint http://b there, http://a here): give every node",
        ),
        (
            SEEN | {"store": "s3", "endpoint": "http://a", "region": "r"},
            None,  # other credentials that give the same are as good
        ),
        (
            {**HERE, "credentials": "no credentials", "error": "permission denied"},
            "cannot use the output: permission denied (credentials no credentials there, keys in the "
            "environment here): give every node the same settings and credentials",
        ),
        (
            HERE | SEEN | {"version": "f"},
            "sees another file than this command at the output: give every node",
        ),
    ],
)
def test_a_difference_is_told_with_both_sides_and_the_cure(there, line):
    told = difference("the output", HERE | SEEN, there)
    assert told is None if line is None else told.startswith(line)


def test_a_local_place_that_a_node_does_not_have_is_told_with_its_cure():
    here = {"store": store_view.LOCAL} | SEEN
    there = {"store": store_view.LOCAL, "error": "it is not there"}
    assert difference("the output /x", here, there) == (
        "cannot use the output /x: it is not there: "
        "mount the same folder on every node, or name a store such as s3://"
    )


def test_what_this_process_cannot_see_either_is_no_difference():
    assert difference("x", {"error": "gone", "store": "s3"}, {"error": "gone", "store": "s3"}) is None


@pytest.mark.parametrize(
    ("env", "options", "kind"),
    [
        ({"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "secret"}, {}, "keys in the environment"),
        ({}, {"key": "k", "secret": "secret"}, "keys in --storage-options"),
        ({}, {"anon": True}, "no credentials"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "FILE"}, {}, "keys in ~/.aws/credentials"),
    ],
)
def test_the_view_of_an_s3_store_has_its_settings_and_no_secret(monkeypatch, tmp_path, env, options, kind):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = k\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody: a view needs no answer
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    for name, value in env.items():
        monkeypatch.setenv(name, str(file) if value == "FILE" else value)
    view = store_view._settings(connected("s3://bucket/x", options))
    assert view == {
        "store": "s3",
        "endpoint": "http://127.0.0.1:1",
        "region": "eu-north-1",
        "credentials": kind,
        "proxy": "proxy:3128",
    }
    assert "secret" not in json.dumps(view)


def connected(uri: str, options: dict):
    from wordsworth.pipeline.storage.s3_files import S3Files

    S3Files.clear_instance_cache()  # another process would have other settings
    fs, _ = store_view.open_filesystem(uri, options)
    fs.connect()
    return fs
