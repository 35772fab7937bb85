"""Take the variables of --env-file into this process's environment: keys that lie on the nodes alone.

Only the name of the file travels, in the variable WORDSWORTH_ENV_FILE. The package `wordsworth.pipeline`
reads the file when a process imports it: the driver of a job, and every worker before its first task. A
process that decodes images is started with a fixed list of variables, so it gets none of them.
"""

import os
import re
import socket
from pathlib import Path

from wordsworth.pipeline.errors import UserError

ENV_FILE = "WORDSWORTH_ENV_FILE"  # environment variable: name of the file
MAX_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPORT = re.compile(r"^export\s+")
_trouble: str | None = None  # see trouble()


def take_env_file(path: str) -> None:
    """Take the variables of a file into the environment of this process, and of the workers that it starts.

    Args:
        path: a file with lines KEY=VALUE, or a folder with a file for each variable, as Kubernetes mounts
            a Secret.

    Raises:
        UserError: there is no such file here, or a line of it is no variable. The line itself is never shown.
    """
    global _trouble
    os.environ.update(_variables(Path(path)))
    os.environ[ENV_FILE] = os.path.abspath(path)
    _trouble = None


def take_at_start() -> None:
    """Take the file that the environment names. What is wrong with the file is kept for `trouble`.

    An exception here would be an import that fails, which Ray reports without its reason.
    """
    global _trouble
    try:
        take_env_file(os.environ[ENV_FILE])
    except UserError as error:
        _trouble = str(error)


def trouble() -> str | None:
    """Return why the file that the environment names was not read in this process; None if all is well."""
    return _trouble


def refuse_untaken_env_file() -> None:
    """Refuse to go on where the file that the environment names was not read.

    Raises:
        UserError: it was not.
    """
    if _trouble:
        raise UserError(_trouble)


def _variables(path: Path) -> dict[str, str]:
    where = f"--env-file {path} on {socket.gethostname()}"
    try:
        if path.is_dir():
            files = [file for file in path.iterdir() if _NAME.fullmatch(file.name) and file.is_file()]
            return {file.name: _text(file).rstrip("\r\n") for file in files}
        text = _text(path)
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such file: it must lie on every node, under this name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text, or larger than 1 MiB"
        raise UserError(f"{where} cannot be read: {reason}") from error
    variables = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, value = _EXPORT.sub("", line.strip()).partition("=")
        if not separator or not _NAME.fullmatch(name.strip()):
            raise UserError(f"{where}: line {number} is not KEY=VALUE")
        try:
            variables[name.strip()] = _unquoted(value.strip())
        except ValueError as error:
            raise UserError(f"{where}: line {number}: {error}") from None
    return variables


def _text(path: Path) -> str:
    with open(path, encoding="utf-8-sig") as file:  # editors of Windows write a mark before the text
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES or "\0" in text:
        raise ValueError
    return text


def _unquoted(value: str) -> str:
    """Return a value without its quotes.

    Raises:
        ValueError: programs differ on what the value is. A key that is cut or too long is refused by the
            store later, and nobody would look here.
    """
    quote = value[:1]
    if quote not in ("'", '"'):
        if " #" in value:
            raise ValueError("put the comment on a line of its own, or the value into quotes")
        return value
    if len(value) < 2 or value[-1] != quote or quote in value[1:-1]:
        raise ValueError("the quote before the value must stand behind it too, and nowhere else in the line")
    return value[1:-1]
