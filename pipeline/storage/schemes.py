"""Tell the schemes of URIs apart, and take what is secret out of a URI."""

import re

SCHEMES = ("file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
LOCAL_SCHEMES = ("file", "local")
HTTP = ("http", "https")  # schemes that need --allow-http
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?=:)")  # more than one letter: `C:` is none
_IPV6 = re.compile(r"(?<=://)\[[0-9A-Fa-f:.]+\]")  # a host
_USER = re.compile(r"[^/?#]*@|[^/:@?#]+:(?!\d*/)[^@?#]*@")  # second case: a secret with a slash in it


def is_chain(uri: str) -> bool:
    """Return whether fsspec would take a URI for a chain of file systems.

    Behind a scheme `::` is a part of the name, unless another scheme follows it. IPv6 addresses have it too.
    """
    first, chained, rest = _IPV6.sub("", uri).partition("::")
    return bool(chained) and ("://" not in first or "://" in rest)


def is_web(uri: str) -> bool:
    """Return whether a URI is the address of something on a web server."""
    return uri.partition("://")[0].lower() in HTTP and "://" in uri


def scheme_of(uri: str) -> str | None:
    """Return what stands before the first colon, if it may be a scheme."""
    match = _SCHEME.match(uri)
    return match[0] if match else None


def without_credentials(uri: str) -> str:
    """Return the URI without user name and password, and that of a web server without its query.

    A query can hold a signature that gives access. Azure's `container@` stays.
    """
    if "://" not in uri:
        return uri
    scheme, separator, rest = uri.partition("://")
    if scheme.lower() in HTTP:
        rest = rest.partition("?")[0]
        uri = f"{scheme}{separator}{rest}"
    user = _USER.match(rest) if "/" not in scheme else None
    if user is None:
        return uri
    if scheme.lower().startswith(("az", "abfs")) and ":" not in user[0]:
        return uri
    return f"{scheme}://{rest[user.end() :]}"
