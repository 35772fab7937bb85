"""Find secrets in what would travel with a job: Ray shows a job's command to all who may ask it."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.schemes import without_credentials

SECRET_NAME = re.compile(
    r"secret|password|passwd|passphrase|token|credential|(account|api|access|private|shared|signing)_?key$"
    r"|connection_string|signature|authorization|^sas",
    re.IGNORECASE,
)
# Names that look like secrets and hold none: where a secret lies, or which kind of it.
NO_SECRET_NAME = re.compile(
    r"(file|path|dir|directory|url|uri|provider|mode|expir\w*|parallelism)$", re.IGNORECASE
)
NO_SECRETS = ("", "anon", "google_default", "cloud", "cache", "browser")  # values that open nothing
LEAST_LENGTH = 8  # characters of a variable's value that is searched for: shorter ones stand in many words
WHERE_KEYS_BELONG = (
    "keys belong on the nodes: in their role, their environment, or a file that --env-file names"
)


def refuse_secrets(texts: Iterable[str], where: str) -> None:
    """Refuse texts that hold a secret: a signed address, a password, or the value of a secret variable.

    Raises:
        UserError: one does. The line does not show it.
    """
    secrets = dict(_secret_variables())
    for text in texts:
        if "://" in text and any(without_credentials(part) != part for part in _addresses(text)):
            raise UserError(f"{where} has an address with a password or a signature: {WHERE_KEYS_BELONG}", 2)
        for name, value in secrets.items():
            if value in text:
                raise UserError(f"{where} has the value of {name}: {WHERE_KEYS_BELONG}", 2)


def refuse_secret_options(options: str, where: str) -> None:
    """Refuse options of a store's client, a JSON object, that hold a secret.

    Raises:
        UserError: they do.
    """
    try:
        names = list(_secret_names(json.loads(options)))
    except (ValueError, RecursionError):
        return  # the command itself says what is wrong with it
    if names:
        raise UserError(f"{where} has {names[0]} in --storage-options: {WHERE_KEYS_BELONG}", 2)


def is_secret_name(name: str) -> bool:
    """Tell whether a variable or an option of this name holds a secret."""
    return bool(SECRET_NAME.search(name)) and not NO_SECRET_NAME.search(name)


def _secret_names(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _secret_names(part)
    if not isinstance(value, dict):
        return
    for name, part in value.items():
        if is_secret_name(name) and part is not None and part not in NO_SECRETS:
            yield name
        else:
            yield from _secret_names(part)


def _secret_variables() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        if is_secret_name(name) and len(value) >= LEAST_LENGTH:
            yield name, value


def _addresses(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+", text)
