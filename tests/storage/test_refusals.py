"""Show that errors of stores and their clients are told in words that say what to do."""

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ProfileNotFound

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.client_options import options_for
from wordsworth.pipeline.storage.refusals import BUSY, UNREACHABLE, explanation, naming, refusal_of


def answer(code: str, message: str = "said by the store") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "GetObject")


def behind(error: Exception) -> Exception:
    """Return the kind of error that s3fs makes of another one."""
    try:
        raise PermissionError("Forbidden") from error
    except PermissionError as outer:
        return outer


REFUSALS = {
    "ExpiredToken": "have expired",
    "RequestTimeTooSkewed": "set the clock",
    "PermanentRedirect": "AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "AWS_DEFAULT_REGION",
    "InvalidBucketName": "check the name",
    "AllAccessDisabled": "get the right",
    "SlowDown": "try again later",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_the_code_of_an_answer_says_what_is_wrong_however_deep_it_lies(code):
    text = explanation(behind(answer(code)))
    assert REFUSALS[code] in text and f"({code} said by the store to GetObject)" in text


def test_exceptions_of_the_clients_themselves_are_known():
    assert "AWS_PROFILE" in explanation(ProfileNotFound(profile="nobody"))
    assert '{"anon": true}' in explanation(NoCredentialsError())
    assert refusal_of(EndpointConnectionError(endpoint_url="http://127.0.0.1:1")) is UNREACHABLE
    assert refusal_of(answer("503")) is BUSY


def test_googles_and_azures_words_are_known():
    retry = pytest.importorskip("gcsfs.retry", reason="the extra gcs is not installed")
    azure = pytest.importorskip("azure.core.exceptions", reason="the extra azure is not installed")
    caller = "Anonymous caller does not have storage.objects.list access"
    assert "no credentials were found" in explanation(retry.HttpError({"code": 401, "message": caller}))
    assert "are wrong" in explanation(retry.HttpError({"code": 401, "message": "Invalid Credentials"}))
    assert "permission denied" in explanation(OSError("Forbidden: b/bucket/o\nno access"))
    assert "requester_pays" in explanation(ValueError("Bucket is requester pays. Set `requester_pays=True`"))
    refused = azure.ClientAuthenticationError("Server failed to authenticate the request. Make sure ...")
    assert "are wrong" in explanation(refused)


def test_an_error_that_is_no_refusal_has_no_explanation():
    for error in (ValueError("no number"), FileNotFoundError("a.jpg"), KeyError("x"), TimeoutError()):
        assert explanation(error) is None
    assert refusal_of(aiohttp.ClientPayloadError("the body broke off")) is None


def test_a_token_in_an_address_is_not_repeated():
    error = OSError("Forbidden: https://host/tokeninfo?access_token=CANARY&more=1 refused")
    assert "CANARY" not in explanation(error)


def test_a_block_names_its_place_and_lets_what_may_pass_through():
    told = r"cannot use s3://bucket/x: permission denied \(AccessDenied"
    with pytest.raises(UserError, match=told), naming("s3://user:CANARY@bucket/x"):
        raise behind(answer("AccessDenied"))
    with pytest.raises(PermissionError), naming("s3://bucket/x"):
        raise behind(answer("SlowDown"))
    with pytest.raises(PermissionError), naming("/a/local/folder"):
        raise PermissionError("no")


def test_options_of_a_bucket_are_for_that_bucket_and_win_over_those_of_its_kind_and_of_all():
    options = {"a": 1, "b": 1, "s3://": {"b": 2}, "s3://one": {"c": 3}, "gs://": {"d": 4}}
    assert options_for("s3://one/deep/x", options) == {"a": 1, "b": 2, "c": 3}
    assert options_for("s3://one-more/x", options) == {"a": 1, "b": 2}
    assert options_for("gs://one/x", options) == {"a": 1, "b": 1, "d": 4}
    assert options_for("/local", options) == {"a": 1, "b": 1}
