"""Say what the errors of S3's client mean: a fault that may pass, credentials that ended, a refusal."""

from typing import Any

import aiohttp
from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError

from wordsworth.pipeline.storage.patience import StoreFailure

# Codes of answers that are no 5xx, and pass.
PASSING = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "IncompleteBody", "408", "429")
ENDED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
RENEWED = (*ENDED, "InvalidToken", "InvalidAccessKeyId")  # codes that other credentials may put right
NO_CODE = "400"  # of a HEAD
CONNECTION = (
    ConnectionError,
    TimeoutError,
    aiohttp.ClientError,
    botocore.ConnectionError,
    botocore.HTTPClientError,
    botocore.IncompleteReadError,
    ResponseParserError,
)


class PassingFault(OSError):
    """Report a body that is not what its headers say or hardly moves, or credentials that have ended."""


def may_pass(error: BaseException) -> bool:
    """Return whether an error of a call is a fault of the store or the network that may pass."""
    if isinstance(error, StoreFailure | botocore.SSLError):
        return False
    if isinstance(error, PassingFault):
        return True
    response = response_of(error)
    if response is None:
        return isinstance(error, CONNECTION)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code_of(error) in PASSING or (status >= 500 and status != 501)


def response_of(error: BaseException) -> dict[str, Any] | None:
    """Return what a store answered with a refusal; None where no answer came."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, dict):
            return response
    return None


def code_of(error: BaseException) -> str:
    return str((response_of(error) or {}).get("Error", {}).get("Code", ""))


def said_by(error: BaseException) -> str:
    response = response_of(error)
    if response is None:
        return f"{type(error).__name__}: {error}"
    said = response.get("Error", {})
    return f"{said.get('Code', '')}: {said.get('Message', '')}"
