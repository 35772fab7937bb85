"""Fetch files of a repository on the Hugging Face hub: one commit of it, asked for once.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE hold. The files lie in the cache of all of Hugging Face's
programs. huggingface_hub is imported inside the functions, because the import takes a second.
"""

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.hub_cache import SHORT_COMMIT, HubCache, parts_of
from wordsworth.vit_model.weights import first_line

T = TypeVar("T")
Note = Callable[[str], None]  # gets what the user should know, a line at a time

REACH_SECONDS = 5.0  # the hub's first answer may take so long; HF_HUB_ETAG_TIMEOUT sets another time
DEFAULT_BRANCH = "main"
NUM_SHOWN = 8  # names that a message lists, at most
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*")


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Say which files of which repository are wanted.

    Attributes:
        called: the name of the model in messages, such as "hf:OWNER/NAME".
        repository: OWNER/NAME.
        revision: a branch, a tag, a commit of 7 to 40 digits, or refs/pr/N; None is the branch main.
        choose: takes the names of all files of a commit, and returns the names of the wanted ones. Raises
            ModelError where there are none.
        usual: the files that such a repository mostly has, for a message where no list can be had.
        option: how the files are given once they were fetched by hand, such as "--model FOLDER".
    """

    called: str
    repository: str
    revision: str | None
    choose: Callable[[Sequence[str]], list[str]]
    usual: tuple[str, ...]
    option: str

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repository):
            raise ModelError(
                f"{self.called} is no name of a repository: hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
            )
        if self.revision is not None and not REVISION.fullmatch(self.revision):
            raise ModelError(f"{self.called}: {self.revision!r} is no name of a branch, a tag or a commit")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Hold the wanted files of one commit.

    Attributes:
        folder: the folder with the files, in the cache.
        files: names of the wanted files; those of the parts of sharded weights are left out.
        repository: OWNER/NAME.
        commit: 40 hex digits.
        revision: as it was asked for; None was the branch main.
    """

    folder: Path
    files: tuple[str, ...]
    repository: str
    commit: str
    revision: str | None

    def provenance(self) -> dict[str, Any]:
        """Return the origin of the weights, as a checkpoint keeps it in `extra`."""
        asked = {"revision": self.revision} if self.revision else {}
        return {"repository": self.repository, "commit": self.commit} | asked


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of OWNER/NAME@REVISION; None where no revision is named."""
    repository, at, revision = name.partition("@")
    return repository, revision if at else None


def fetch(wanted: HubFiles, note: Note = print) -> Snapshot:
    """Fetch the files of one commit. What the cache has is not fetched again.

    Args:
        wanted: the files.
        note: gets a line where the hub cannot be reached and the copy in the cache is used.

    Raises:
        ModelError: no network and no copy, no such repository or revision, a refusal.
    """
    from huggingface_hub import constants

    cache = HubCache(Path(constants.HF_HUB_CACHE), wanted.repository)
    if constants.HF_HUB_OFFLINE:
        found = _cached(wanted, cache)
        return found or _refuse_without(wanted, cache, "HF_HUB_OFFLINE is set")
    try:
        commit, names = _commit_and_names(wanted)
    except _Unreachable as reason:
        found = _cached(wanted, cache)
        if found is None:
            _refuse_without(wanted, cache, str(reason))
        note(f"{wanted.called}: {reason}; the copy in the cache is used, commit {found.commit}")
        return found
    files = wanted.choose(names)
    for name in files:
        _fetch_file(wanted, commit, name)
        if name.endswith(".index.json"):
            for part in parts_of(cache.folder(commit) / name):
                _fetch_file(wanted, commit, part)
    cache.keep_revision(wanted.revision or DEFAULT_BRANCH, commit)
    return _snapshot(wanted, cache, commit, files)


def _snapshot(wanted: HubFiles, cache: HubCache, commit: str, files: list[str]) -> Snapshot:
    return Snapshot(
        folder=cache.folder(commit),
        files=tuple(files),
        repository=wanted.repository,
        commit=commit,
        revision=wanted.revision,
    )


# ---- the hub ---------------------------------------------------------------------------------------------


class _Unreachable(Exception):
    """Say why the hub gives no answer."""


def _commit_and_names(wanted: HubFiles) -> tuple[str, list[str]]:
    """Ask the hub which commit a revision is, and which files it has."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return _ask(wanted, wanted.revision)
    except RevisionNotFoundError as error:
        revision = str(wanted.revision)
        # The hub itself takes a commit of 40 digits alone.
        full = _full_commit(wanted, revision) if SHORT_COMMIT.fullmatch(revision) else None
        if full is None:
            has = f"it has {_known_revisions(wanted)}"
            raise ModelError(f"{wanted.called}: no branch, tag or commit {revision!r}; {has}") from error
        return _ask(wanted, full)


def _ask(wanted: HubFiles, revision: str | None) -> tuple[str, list[str]]:
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().model_info(wanted.repository, revision=revision, timeout=reach_seconds())

    about = _answer(wanted, ask)
    return about.sha, [file.rfilename for file in about.siblings or ()]


def _full_commit(wanted: HubFiles, short: str) -> str | None:
    from huggingface_hub import HfApi

    commits = _answer(wanted, lambda: HfApi().list_repo_commits(wanted.repository))
    matching = [commit.commit_id for commit in commits if commit.commit_id.startswith(short)]
    return matching[0] if len(matching) == 1 else None


def _known_revisions(wanted: HubFiles) -> str:
    from huggingface_hub import HfApi

    refs = _answer(wanted, lambda: HfApi().list_repo_refs(wanted.repository))
    return _some([ref.name for ref in (*refs.branches, *refs.tags)])


def _answer(wanted: HubFiles, ask: Callable[[], T]) -> T:
    """Return what the hub answers to one question, asked once.

    Raises:
        ModelError: it refuses.
        RevisionNotFoundError: it has no such revision.
        _Unreachable: it does not answer in time, or has a fault.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return within(reach_seconds(), ask)
    except HfHubHTTPError as error:
        raise _refusal(wanted, error) from error
    except Exception as error:  # the client has many kinds of errors, and other versions have others
        raise _Unreachable(f"{constants.ENDPOINT} cannot be reached ({first_line(error)})") from error


def _refusal(wanted: HubFiles, error: Any) -> Exception:
    """Return the error that says what an answer of the hub means for the user."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return error
    page = f"{constants.ENDPOINT}/{wanted.repository}"
    token = "`hf auth login` or HF_TOKEN gives this machine a token"
    if isinstance(error, GatedRepoError):
        return ModelError(f"{wanted.called} is gated: accept its conditions at {page}; {token}")
    if isinstance(error, RepositoryNotFoundError):
        where = f"{constants.ENDPOINT} has no repository {wanted.repository}"
        return ModelError(f"{wanted.called}: {where}, or it is private: look at the spelling; {token}")
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return ModelError(
            f"{wanted.called}: {constants.ENDPOINT} wants a token that it accepts ({status}); {token}"
        )
    return _Unreachable(f"{constants.ENDPOINT} has a fault ({first_line(error)})")


def _fetch_file(wanted: HubFiles, commit: str, name: str) -> None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(wanted.repository, name, revision=commit, etag_timeout=reach_seconds())
    except HfHubHTTPError as error:
        reason = _refusal(wanted, error)
        if isinstance(reason, ModelError):
            raise reason from error
        raise _broken_off(wanted, name, reason) from error
    except Exception as error:
        raise _broken_off(wanted, name, f"{constants.ENDPOINT}: {first_line(error)}") from error


def _broken_off(wanted: HubFiles, name: str, reason: object) -> ModelError:
    return ModelError(
        f"{wanted.called}: {name} cannot be downloaded ({reason}); the same command tries again"
    )


def reach_seconds() -> float:
    """Return the seconds that the hub's answer to a question may take."""
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or REACH_SECONDS)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of a call, or its error.

    A question to a name server has no timeout of its own, and its thread may outlive this call.

    Raises:
        TimeoutError: the call takes longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)  # a timeout of the call's own says more, and so comes first
    if results:
        return results[0]
    raise errors[0] if errors else TimeoutError(f"no answer in {seconds:g} seconds")


# ---- the cache -------------------------------------------------------------------------------------------


def _cached(wanted: HubFiles, cache: HubCache) -> Snapshot | None:
    """Return the wanted files as they lie in the cache, or None if they are not all there."""
    commit = cache.commit_of(wanted.revision or DEFAULT_BRANCH)
    if commit is None or not cache.folder(commit).is_dir():
        return None
    try:
        files = wanted.choose(sorted(path.name for path in cache.folder(commit).iterdir()))
    except ModelError:
        return None
    return _snapshot(wanted, cache, commit, files) if cache.has(commit, files) else None


def _refuse_without(wanted: HubFiles, cache: HubCache, reason: str) -> NoReturn:
    """Refuse a model that is neither in the cache nor to be had, and say how it can be brought here."""
    revision = f" --revision {wanted.revision}" if wanted.revision else ""
    command = f"hf download {wanted.repository}{revision} {' '.join(wanted.usual)}"
    raise ModelError(
        f"{wanted.called}: {reason}, and {cache.place} has no copy. Where there is a network: "
        f"`{command} --local-dir FOLDER`; bring FOLDER here and give {wanted.option}"
    )


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
