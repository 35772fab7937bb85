"""Check a command before it is sent to a cluster, and find the files of this machine that it names."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError

from wordsworth.jobs import cli
from wordsworth.jobs.config_file import config_reader, recipe
from wordsworth.jobs.given_secrets import refuse_secret_options, refuse_secrets
from wordsworth.jobs.usage import check_values, listed, unknown_option, usage_line
from wordsworth.pipeline.cluster.package import MAX_CARRIED, carried_name
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.schemes import scheme_of

MAX_LENGTH = 100_000  # bytes of a command; Linux gives a shell 131,072 with all quotes
HERE_ONLY = ("submit", "demo", "models")  # commands that have nothing to do on a cluster
PLACES = (
    "sources",
    "output",
    "run",
    "folder",
    "train",
    "val",
    "probe",
)  # arguments: names of what is read and written
FILES = ("model", "weights", "labels", "class_weights")  # arguments: a file or folder that the driver reads
CHOICES = ("model", "class_weights")  # of these, those that may be a name instead
LISTS = ("sources", "classes", "prompt")  # arguments: @FILE is a file that the driver reads


@dataclass(kw_only=True)
class SubmittedCommand:
    """Hold a command that was checked.

    Attributes:
        tokens: the command and its arguments, as the job gets them.
        places: what it reads and writes, in the order of the arguments.
        output: what it writes, or None.
        grace: seconds in which it ends when it is told to.
        carried: files of this machine that travel with the job, by their name in its working directory.
        notes: lines for the user.
    """

    tokens: list[str]
    places: list[str] = field(default_factory=list)
    output: str | None = None
    grace: float = 0.0
    carried: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name of the command, such as label."""
        return self.tokens[0]


def checked_command(tokens: list[str]) -> SubmittedCommand:
    """Return a command that can be sent, or refuse it as the command itself would.

    Args:
        tokens: what stands behind `--`.

    Raises:
        UserError: there is no such command or option, it holds a secret, or it names a file that is not here.
    """
    tokens = _command_alone(tokens)
    _check_text(tokens)
    command = SubmittedCommand(tokens=list(tokens))
    arguments = dict(_arguments(command))
    options = arguments.get("storage_options")
    if isinstance(options, str):
        refuse_secret_options(options, f"wordsworth {tokens[0]}")
    refuse_secrets(_texts(arguments), f"wordsworth {tokens[0]}")
    refuse_secrets(tokens, f"wordsworth {tokens[0]}")
    if arguments.get("address"):
        raise UserError("--address stands before --: the command joins the cluster on which it runs", 2)
    command.grace = float(arguments.get("grace", ClusterRequest.grace))
    command.output = arguments.get("output")
    _check_places(command, arguments)
    _carry_files(command, arguments)
    return command


def _command_alone(tokens: list[str]) -> list[str]:
    """Return the command and its arguments, without the name of this program.

    Raises:
        UserError: there is none, or one that has nothing to do on a cluster.
    """
    if tokens[:1] == ["wordsworth"]:
        tokens = tokens[1:]
    if not tokens or tokens[0].startswith("-"):
        names = cli.option_names("submit")
        if tokens and tokens[0].partition("=")[0] not in names:
            raise UserError(f"{unknown_option('submit', tokens[0], names)} {listed('submit')}", 2)
        raise UserError("say what to run, behind --: wordsworth submit -- label SOURCE --output OUT ...", 2)
    if tokens[1:3] == ["-m", "wordsworth"]:
        raise UserError(
            f"leave out {' '.join(tokens[:3])}: behind -- stands the command, such as label SOURCE ... "
            "(--python names the nodes' Python)",
            2,
        )
    words = tokens[0].removeprefix("wordsworth ").split()
    if len(words) > 1 and words[0] in cli.COMMANDS:
        raise UserError("leave out the quotes around the command: behind -- each argument is a word", 2)
    if tokens[0] in HERE_ONLY:
        raise UserError(f"wordsworth {tokens[0]} runs on this machine: call it without submit", 2)
    if "--help" in tokens or "-h" in tokens:
        raise UserError(f"call wordsworth {tokens[0]} --help without submit", 2)
    return tokens


def _check_text(tokens: list[str]) -> None:
    """Check that a shell of the cluster can get the command.

    Raises:
        UserError: it is too long, or has bytes that are no UTF-8.
    """
    try:
        length = len(" ".join(tokens).encode())
    except UnicodeEncodeError as error:
        raise UserError("a name that is no UTF-8 cannot travel so: put it into @list.txt", 2) from error
    if length > MAX_LENGTH:
        raise UserError(f"{length:,} bytes are too many for a shell: put the sources into @list.txt", 2)


def _arguments(command: SubmittedCommand) -> Iterator[tuple[str, Any]]:
    """Yield each argument of the command by its name, also those in a group of options and in --config."""
    tokens = list(command.tokens)
    config = _take_config(tokens)
    is_recipe = config is not None and recipe(config) is not None  # it travels with the package
    reader = config_reader(config) if config is not None and (is_recipe or config.exists()) else None
    cli.app.config = (*([reader] if reader else []), check_values)
    try:
        _, bound, _ = cli.app.parse_args(tokens, print_error=False, exit_on_error=False)
    except MissingArgumentError as error:
        if config is None or reader is not None:
            raise UserError(usage_line(error, tokens), 2) from error
        return  # the file that gives the rest lies on the nodes
    except CycloptsError as error:
        raise UserError(usage_line(error, tokens), 2) from error
    finally:
        cli.app.config = ()
    for name, value in bound.arguments.items():
        if dataclasses.is_dataclass(value):
            for option in dataclasses.fields(value):
                yield option.name, getattr(value, option.name)
        else:
            yield name, value
    if config is not None and not is_recipe:
        yield "config", str(config)


def _take_config(tokens: list[str]) -> Path | None:
    """Take --config FILE out of the tokens, as the command line does it before a command sees them."""
    tokens[:] = [token for token in tokens if token != "--debug"]
    for index, token in enumerate(tokens):
        if token.startswith("--config="):
            del tokens[index]
            return Path(token.removeprefix("--config="))
        if token == "--config" and index + 1 < len(tokens):
            path = tokens[index + 1]
            del tokens[index : index + 2]
            return Path(path)
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _check_places(command: SubmittedCommand, arguments: dict[str, Any]) -> None:
    """Refuse relative paths, and say of absolute ones whose they are.

    Raises:
        UserError: a source or an output is a relative path.
    """
    on_nodes = []
    for name in PLACES:
        for place in _texts(arguments.get(name)):
            if place.startswith("@"):
                continue
            command.places.append(place)
            scheme = scheme_of(place)
            if scheme not in (None, "file", "local"):
                continue
            path = re.sub(r"^(file|local):(//)?", "", place)
            if not path.startswith("/"):
                raise UserError(
                    f"{place} is a path on this machine: the job runs on a cluster. Give a store such as "
                    "s3://, or the absolute path of a folder that all nodes share",
                    2,
                )
            on_nodes.append(place)
    if on_nodes:
        command.notes.append(f"on the cluster's nodes, not on this machine: {', '.join(on_nodes)}")


def _carry_files(command: SubmittedCommand, arguments: dict[str, Any]) -> None:
    """Choose the files of this machine that travel with the job, and name them as the job finds them.

    Raises:
        UserError: a file is not here, or a relative path is too large to travel.
    """
    for prefix, value in _named_files(arguments):
        path = Path(value)
        if not path.exists():
            if prefix not in CHOICES and not path.is_absolute():
                raise UserError(f"{value}: no such file here, and none of a store or of the nodes", 2)
            continue
        if path.is_absolute() and _size(path) > MAX_CARRIED:
            command.notes.append(f"{value} is too large to travel: it must lie on the nodes under this name")
            continue
        if prefix == "--config":
            refuse_secrets([path.read_text(encoding="utf-8", errors="replace")], value)
        name = carried_name(path, command.carried)
        mark = prefix if prefix == "@" else ""
        for index, token in enumerate(command.tokens):
            option, separator, given = token.partition("=")
            if token == mark + value:
                command.tokens[index] = mark + name
            elif separator and option.startswith("--") and given == mark + value:
                command.tokens[index] = f"{option}={mark}{name}"
    if command.carried:
        command.notes.append(
            f"these files travel with the job: {', '.join(map(str, command.carried.values()))}"
        )


def _named_files(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every name of a file that the driver reads, and what stands before it on the command line."""
    if "config" in arguments:
        yield "--config", arguments["config"]
    for name in FILES:
        value = arguments.get(name)
        if isinstance(value, str) and (scheme_of(value) is None or Path(value).exists()):
            yield name, value
    for name in LISTS:
        for value in _texts(arguments.get(name)):
            if value.startswith("@") and scheme_of(value[1:]) is None:
                yield "@", value[1:]


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
