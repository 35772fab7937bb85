"""Say what a store's refusal means and what to do about it, in words that do not depend on the client.

s3fs, gcsfs and adlfs raise some hundred kinds of exceptions, and the kind that arrives is seldom the one that
says why: s3fs makes PermissionError("Forbidden") of a wrong secret, an ended token and a missing right alike.
The reason stands in an exception behind it.
"""

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.filesystem import without_credentials

STORES = "docs/stores.md"  # page that says where each store's client looks for credentials
CLIENTS = ("aiohttp", "azure", "botocore", "gcsfs", "google", "requests")  # packages that raise for a store
MOST_SAID = 200  # characters of a client's own words
_QUERY = re.compile(r"\?[^\s'\")]*")  # of an address, which can hold a token
DEEPEST = 20  # exceptions that are looked at behind one


@dataclass(frozen=True)
class Refusal:
    """Describe why a store, or its client, does not do what it was asked for.

    Attributes:
        problem: what is wrong.
        remedy: what to do.
        of_object: whether other objects of the bucket may be given all the same.
    """

    problem: str
    remedy: str
    of_object: bool = False


_GIVE = f"by the environment, the client's own files or --storage-options ({STORES})"
_NO_CREDENTIALS = Refusal(
    "no credentials were found",
    f"give them {_GIVE}; a public bucket needs --storage-options '{{\"anon\": true}}'",
)
_WRONG_KEY = Refusal("the store does not know the access key", f"give the right one {_GIVE}")
_WRONG_SECRET = Refusal("the credentials are wrong", f"give the right ones {_GIVE}")
_ENDED = Refusal("the credentials have expired", f"get new ones, and give them {_GIVE}")
_NOT_ALLOWED = Refusal(
    "permission denied", "get the right to do so, or use other credentials", of_object=True
)
NO_BUCKET = Refusal("the bucket does not exist", "check its name, the endpoint and the account")
_BUCKET_NAME = Refusal("the store has no bucket of such a name", "check the name")
_OTHER_REGION = Refusal(
    "the bucket is in another region or at another endpoint",
    "set AWS_DEFAULT_REGION (or client_kwargs.region_name in --storage-options) to the bucket's region",
)
_CLOCK = Refusal("the clock of this machine differs from the store's", "set the clock")
_PAYER = Refusal(
    "the bucket lets the requester pay",
    "allow it: --storage-options '{\"requester_pays\": true}'",
    of_object=True,
)
BUSY = Refusal("the store is too busy or fails", "try again later")
UNREACHABLE = Refusal(
    "the store cannot be reached",
    "check the network and the store's address (endpoint_url, AWS_ENDPOINT_URL or the account's name)",
)
NO_TLS = Refusal(
    "no secure connection comes about",
    "check whether the endpoint is https:// or http://, and the certificates (AWS_CA_BUNDLE, SSL_CERT_FILE)",
)
_PROFILE = Refusal("the client's configuration is wrong", "check AWS_PROFILE and the files in ~/.aws")
_ENDPOINT = Refusal(
    "the endpoint is no URL", "begin it with https:// or http://, and check its host and port"
)
_NO_TOKEN = Refusal(
    "the service that gives tokens for the credentials cannot be reached",
    f"check the network, or give other credentials {_GIVE}",
)

# Codes of S3, Azure and Google in the answers of stores.
CODES = {
    "InvalidAccessKeyId": _WRONG_KEY,
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "InvalidToken": _WRONG_SECRET,
    "InvalidSecurity": _WRONG_SECRET,
    "UnrecognizedClientException": _WRONG_SECRET,
    "AuthenticationFailed": _WRONG_SECRET,
    "InvalidAuthenticationInfo": _WRONG_SECRET,
    "401": _WRONG_SECRET,
    "ExpiredToken": _ENDED,
    "ExpiredTokenException": _ENDED,
    "TokenRefreshRequired": _ENDED,
    "RequestExpired": _ENDED,
    "NoAuthenticationInformation": _NO_CREDENTIALS,
    "MissingSecurityHeader": _NO_CREDENTIALS,
    "NoSuchBucket": NO_BUCKET,
    "ContainerNotFound": NO_BUCKET,
    "ContainerBeingDeleted": NO_BUCKET,
    "InvalidBucketName": _BUCKET_NAME,
    "InvalidResourceName": _BUCKET_NAME,
    "PermanentRedirect": _OTHER_REGION,
    "TemporaryRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "301": _OTHER_REGION,
    "RequestTimeTooSkewed": _CLOCK,
    "AccessDenied": _NOT_ALLOWED,
    "AllAccessDisabled": _NOT_ALLOWED,
    "AuthorizationFailure": _NOT_ALLOWED,
    "AuthorizationPermissionMismatch": _NOT_ALLOWED,
    "InsufficientAccountPermissions": _NOT_ALLOWED,
    "PublicAccessNotPermitted": _NOT_ALLOWED,
    "403": _NOT_ALLOWED,
    "SlowDown": BUSY,
    "ServiceUnavailable": BUSY,
    "ServerBusy": BUSY,
    "InternalError": BUSY,
    "500": BUSY,
    "502": BUSY,
    "503": BUSY,
    "504": BUSY,
    "429": BUSY,
}

# Words that say more than the code beside them, which Azure and Google use for several things.
WORDS = (
    ("failed to authenticate the request", _WRONG_SECRET),
    ("Anonymous caller", _NO_CREDENTIALS),
)

# Exceptions of the clients, by package and name. A name stands for exceptions of its subclasses too.
KINDS = {
    ("botocore", "NoCredentialsError"): _NO_CREDENTIALS,
    ("botocore", "NoAuthTokenError"): _NO_CREDENTIALS,
    ("botocore", "PartialCredentialsError"): Refusal(
        "a part of the credentials is missing", f"give both, the key and the secret, {_GIVE}"
    ),
    ("botocore", "CredentialRetrievalError"): Refusal(
        "the program or service that gives the credentials failed", "run it by hand, or log in again"
    ),
    ("botocore", "SSOError"): Refusal("the login has ended", "log in again: aws sso login"),
    ("botocore", "SSOTokenLoadError"): Refusal("the login has ended", "log in again: aws sso login"),
    ("botocore", "UnauthorizedSSOTokenError"): Refusal("the login has ended", "log in again: aws sso login"),
    ("botocore", "TokenRetrievalError"): Refusal("the login has ended", "log in again: aws sso login"),
    ("botocore", "ProfileNotFound"): _PROFILE,
    ("botocore", "ConfigNotFound"): _PROFILE,
    ("botocore", "ConfigParseError"): _PROFILE,
    ("botocore", "InvalidConfigError"): _PROFILE,
    ("botocore", "NoRegionError"): _OTHER_REGION,
    ("botocore", "InvalidRegionError"): _OTHER_REGION,
    ("botocore", "ParamValidationError"): _BUCKET_NAME,
    ("botocore", "EndpointResolutionError"): _ENDPOINT,
    ("botocore", "SSLError"): NO_TLS,
    ("botocore", "ConnectionError"): UNREACHABLE,
    ("botocore", "HTTPClientError"): UNREACHABLE,
    ("aiohttp", "ClientConnectorSSLError"): NO_TLS,
    ("aiohttp", "ClientConnectorCertificateError"): NO_TLS,
    ("aiohttp", "ClientConnectorError"): UNREACHABLE,
    ("aiohttp", "ServerTimeoutError"): UNREACHABLE,
    ("requests", "ConnectionError"): UNREACHABLE,
    ("azure", "ServiceRequestError"): UNREACHABLE,
    ("azure", "ServiceResponseError"): UNREACHABLE,
    ("azure", "CredentialUnavailableError"): _NO_CREDENTIALS,
    ("google", "DefaultCredentialsError"): _NO_CREDENTIALS,
    ("google", "TransportError"): _NO_TOKEN,
    ("google", "RefreshError"): Refusal(
        "the credentials have expired or are wrong", "log in again: gcloud auth application-default login"
    ),
}
# Parts of texts, where a client raises a plain ValueError or OSError.
TEXTS = (
    ("requester pays", _PAYER),
    ("Invalid endpoint", _ENDPOINT),
    ("Invalid IPv6 URL", _ENDPOINT),
    (
        "Connection string",
        Refusal("the connection string is wrong", "copy it again from the storage account"),
    ),
    ("Must provide either a connection_string", _NO_CREDENTIALS),
    ("either not valid, or expired", _ENDED),
    ("Forbidden: ", _NOT_ALLOWED),
)


def refusal_of(error: BaseException) -> Refusal | None:
    """Return why a store refused; None where the error is something else."""
    for cause in _causes(error):
        found = _by_code(cause) or _by_kind(cause) or _by_text(cause)
        if found:
            return found
    return None


def refused(uri: str, error: BaseException, refusal: Refusal) -> UserError:
    """Return a store's refusal as one line: where, what, and what to do.

    Args:
        uri: what the store was asked about.
        error: what the client raised.
        refusal: what it means.
    """
    return UserError(f"cannot use {without_credentials(uri)}: {_line(error, refusal)}")


@contextlib.contextmanager
def naming(uri: str) -> Iterator[None]:
    """Raise a store's refusal within the block as a line about this URI.

    What may pass is raised as it is, for those who try again; so is an error about a local name.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal in (None, BUSY, UNREACHABLE) or "://" not in uri:
            raise
        raise refused(uri, error, refusal) from error


def explanation(error: BaseException) -> str | None:
    """Return what is wrong with a store and what to do, without the place; None for another kind of error."""
    refusal = refusal_of(error)
    return _line(error, refusal) if refusal else None


def _line(error: BaseException, refusal: Refusal) -> str:
    """Return the problem, what the innermost exception of a client says, and the remedy."""
    said = [cause for cause in _causes(error) if _package(type(cause)) in CLIENTS or _by_text(cause)]
    lines = _words_of(said[-1]).splitlines() if said else []
    text = _QUERY.sub("", lines[0] if lines else "")[:MOST_SAID].strip(" .")
    return f"{refusal.problem}{f' ({text})' if text else ''}: {refusal.remedy}"


def _words_of(error: BaseException) -> str:
    """Return what an exception says; of botocore's sentence about an answer what the store itself says."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return str(error)
    told = answer.get("Error", {})
    words = [told.get("Code"), told.get("Message"), f"to {getattr(error, 'operation_name', 'a request')}"]
    return " ".join(str(word) for word in words if word)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those behind it: Ray keeps them in `cause`, clients in `__cause__`, some in
    neither."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen and len(seen) < DEEPEST:
        seen.add(id(cause))
        yield cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__ or cause.__context__


def _package(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return "botocore" if package == "aiobotocore" else package


def _by_code(error: BaseException) -> Refusal | None:
    """Return the refusal that the code of a store's answer stands for."""
    if _package(type(error)) not in CLIENTS:
        return None
    answer = getattr(error, "response", None)
    codes = [getattr(error, "error_code", None), getattr(error, "code", None)]
    if isinstance(answer, dict):
        codes.append(answer.get("Error", {}).get("Code"))
        codes.append(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    else:
        codes.append(getattr(answer, "status_code", None))
    for words, refusal in WORDS:
        if words in str(error):
            return refusal
    for code in codes:
        found = CODES.get(str(getattr(code, "value", code)))
        if found:
            return found
    return None


def _by_kind(error: BaseException) -> Refusal | None:
    for kind in type(error).__mro__:
        found = KINDS.get((_package(kind), kind.__name__))
        if found:
            return found
    if isinstance(error, OSError) and error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
        return UNREACHABLE
    return None


def _by_text(error: BaseException) -> Refusal | None:
    if not isinstance(error, (ValueError, OSError)):
        return None
    text = str(error)
    for part, refusal in TEXTS:
        if part in text:
            return refusal
    return None
