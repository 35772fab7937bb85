"""Find the job server of a Ray cluster, and say in one line why it cannot be used."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wordsworth.pipeline.cluster.ray_internals import quiet_job_client
from wordsworth.pipeline.cluster.tokens import (
    TOKEN,
    TOKEN_FILE,
    TOKEN_PATH,
    refuse_unreadable_token,
    token_file,
    token_place,
)
from wordsworth.pipeline.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PORT = 8265  # of Ray's job server, unless `ray start` was told another one
ANSWER_S = 5.0  # seconds in which the server must answer
VERSION = "/api/version"
LEAST_RAY = (2, 60)  # as pyproject.toml has it
OPTION = "--address"
# Environment variables, in the order in which Ray reads them.
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKEN_WAYS = f"{TOKEN}, a file named by {TOKEN_PATH}, or {TOKEN_FILE}"


@dataclass(frozen=True, kw_only=True)
class JobServer:
    """Hold a job server that answered.

    Attributes:
        url: without a slash at the end.
        ray_version: of the cluster.
        token: that the server took; None for a server that asks for none.
    """

    url: str
    ray_version: str
    token: str | None

    def client(self) -> "JobSubmissionClient":
        """Return Ray's client for this server.

        Raises:
            UserError: the server does not take this version of the client.
        """
        from ray.job_submission import JobSubmissionClient

        quiet_job_client()
        # An empty header keeps Ray's client from looking for a token of its own, and from sending it.
        headers = {"Authorization": f"Bearer {self.token}" if self.token else ""}
        with _without_variables(*ADDRESSES):
            try:
                return JobSubmissionClient(self.url, headers=headers)
            except RuntimeError as error:
                raise UserError(f"cannot submit to {self.url}: {' '.join(str(error).split())}") from error


def find_job_server(address: str | None, insecure: bool, note: Callable[[str], None]) -> JobServer:
    """Return the job server at an address, after it has answered.

    Args:
        address: URL of the job server; None takes RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or this machine's.
        insecure: say nothing where the server asks for no token.
        note: gets the warning about a server that asks for no token.

    Raises:
        UserError: nobody answers there, it is no job server, or it does not take the token.
    """
    url = job_server_url(address)
    origin = _origin(address)
    try:
        status, version = _ask(url, None)
    except UserError as error:
        if origin == OPTION:
            raise
        raise UserError(f"{origin} names a cluster, and --address none: {error}", error.exit_code) from error
    if status == 200:
        _refuse_old(url, version)
        if not insecure:
            note(
                f"{url} asks for no token: whoever reaches it runs code on the cluster "
                "(--insecure silences this line)"
            )
        return JobServer(url=url, ray_version=version, token=None)
    if status != 401:
        raise _no_job_server(url, f"status {status}")
    where = token_place()
    if where is None:
        raise UserError(f"{url} asks for a token: give the cluster's in {TOKEN_WAYS}")
    refuse_unreadable_token(where)
    token = _token()
    status, version = _ask(url, token)
    if status in (401, 403):
        raise UserError(f"{url} refuses the token of {where}: give the cluster's in {TOKEN_WAYS}")
    if status != 200:
        raise _no_job_server(url, f"status {status}")
    _refuse_old(url, version)
    return JobServer(url=url, ray_version=version, token=token)


def job_server_url(address: str | None) -> str:
    """Return the URL of the job server that an address means.

    Raises:
        UserError: it is an address for another purpose.
    """
    origin = _origin(address)
    address = address or os.environ.get(origin) or "auto"
    if address in ("auto", "local"):
        return f"http://127.0.0.1:{PORT}"
    if "://" not in address:
        address = f"http://{address}"
        if urlsplit(address).port is None:
            address = f"{address}:{PORT}"
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        host = None
    if not host:
        raise UserError(f"{origin} {address} is no URL: give the job server, http://HOST:{PORT}", 2)
    if parts.scheme == "ray":
        raise UserError(
            f"{origin} {address} is for Ray's own client: a job goes to the job server, {_usual(host)}", 2
        )
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{origin} {address}: give the job server, http://HOST:{PORT}", 2)
    return address.partition("#")[0].rstrip("/")  # a browser shows the dashboard's pages behind a #


def _origin(address: str | None) -> str:
    """Return what says where the job server is: the option, also where it is left out, or a variable."""
    named = [name for name in ADDRESSES if os.environ.get(name)]
    return named[0] if named and not address else OPTION


def _ask(url: str, token: str | None) -> tuple[int, str]:
    """Return the status of the server's answer, and its version of Ray where it says one.

    Raises:
        UserError: there is no answer, or none of a job server.
    """
    import requests

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.get(url + VERSION, headers=headers, timeout=ANSWER_S, allow_redirects=False)
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise UserError(f"--address {url} is no URL: give the job server, http://HOST:{PORT}", 2) from error
    except (requests.exceptions.ConnectTimeout, requests.exceptions.ReadTimeout) as error:
        raise _silent(url, f"within {ANSWER_S:.0f} s") from error
    except requests.exceptions.SSLError as error:
        raise UserError(
            f"{url}: its certificate is not trusted here (REQUESTS_CA_BUNDLE names others)"
        ) from error
    except requests.exceptions.ConnectionError as error:
        if "refused" in str(error) or "resolve" in str(error) or "unreachable" in str(error):
            raise _silent(url, "there") from error
        raise _no_job_server(url, "an answer that is no HTTP") from error
    if answer.status_code != 200:
        return answer.status_code, ""
    try:
        return 200, str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise _no_job_server(url, "another answer") from error


def _refuse_old(url: str, version: str) -> None:
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    if len(numbers) == 2 and tuple(numbers) < LEAST_RAY:
        least = ".".join(map(str, LEAST_RAY))
        raise UserError(f"the cluster at {url} has Ray {version}; wordsworth needs {least} or later there")


def _silent(url: str, where: str) -> UserError:
    return UserError(
        f"no Ray job server answers {where}: {url}{_through_proxy(url)}. "
        "Check the address, and that its port is open from here; "
        f"on Kubernetes: kubectl port-forward service/HEAD {PORT}:{PORT}"
    )


def _no_job_server(url: str, answer: str) -> UserError:
    host = urlsplit(url).hostname or ""
    usual = _usual(host)
    advice = "give the URL of the job server, which is the dashboard's"
    if url != usual:
        advice = f"the job server is the dashboard's URL, usually {usual}"
        with contextlib.suppress(UserError):
            if _ask(usual, None)[0] in (200, 401):
                advice = f"the job server is {usual}"
    return UserError(f"{url} is no Ray job server ({answer}{_through_proxy(url)}): {advice}")


def _through_proxy(url: str) -> str:
    """Return a part of a line where the environment sends this request to a proxy. The proxy is not shown."""
    import requests

    if not requests.utils.get_environ_proxies(url):
        return ""
    return f", through the proxy of the environment (NO_PROXY={urlsplit(url).hostname} asks directly)"


def _usual(host: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{PORT}"


def _token() -> str:
    """Return the token of this user, from the place that `token_place` names."""
    path = token_file()
    return os.environ.get(TOKEN, "").strip() or (path.read_text(encoding="utf-8").strip() if path else "")


@contextlib.contextmanager
def _without_variables(*names: str) -> Iterator[None]:
    """Take variables out of the environment for a block: Ray's client prefers them to what it is told."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
