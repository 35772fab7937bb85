"""Say what is wrong with a command line, in one line: what, where, what to do instead."""

import difflib
import math
import os
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)
from cyclopts.utils import UNSET
from cyclopts.validators import Number

from wordsworth.jobs.commands import COMMANDS
from wordsworth.jobs.hints import command_hint, hint
from wordsworth.pipeline.errors import UserError

ONE_HYPHEN = re.compile(r"-[a-z][a-z_-]+")  # an option's name behind one hyphen
GENERAL = ("--help", "--config", "--debug", "--log-format")  # options of every command
TRUTHS = ("true", "false", "yes", "no", "on", "off")  # values that flags have in other tools
NAMES = ("--output", "--model", "--val", "--probe", "--train")  # options that name files and folders
WITHOUT_ARGUMENTS = ("models", "demo")  # commands that take options alone
LIKE = 0.7  # an option that is less like another is no misspelling of it; 1 is the same
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def usage_line(error: CycloptsError, arguments: list[str]) -> str:
    """Return the line of a command line that the parser refused.

    Args:
        error: of the parser.
        arguments: what was typed.
    """
    command = arguments[0] if arguments[:1] and arguments[0] in COMMANDS else ""
    if isinstance(error, UnknownCommandError):
        return _unknown_command((error.unused_tokens or arguments)[0])
    if isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
        return f"{unknown_option(command, option, _shown_names(error.argument_collection))} {listed(command)}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{_missing(error, command)} {listed(command)}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{_unused(error.unused_tokens[0], command, arguments)} {listed(command)}"
    return _wrong_value(error) or " ".join(str(error).split()) or type(error).__name__


def listed(command: str) -> str:
    """Say where the options of a command are listed."""
    return f"(wordsworth {command} --help lists the options)" if command else "(wordsworth --help)"


def _wrong_value(error: CycloptsError) -> str | None:
    if isinstance(error, RepeatArgumentError) and error.token:
        return f"{error.token.keyword} is given twice: leave one out"
    if isinstance(error, CoercionError) and error.token:
        wanted = str(error.msg) if error.msg else f"give {_kind(error.target_type)}"
        return f"{_given(error.token, error.argument)}: {wanted}"
    if isinstance(error, ValidationError) and error.argument and error.argument.tokens:
        return _out_of_bounds(error)
    return None


def unknown_option(command: str, option: str, names: Iterable[str]) -> str:
    """Return what is said of an option that a command has not.

    Args:
        command: its name.
        option: as it was typed, perhaps with =VALUE.
        names: the options that the command has.
    """
    name = option.partition("=")[0]
    instead = hint(command, name)
    if instead:
        return f"there is no option {name}: {instead}"
    alike = difflib.get_close_matches(name, list(names), 1, LIKE)
    meant = f": did you mean {alike[0]}?" if alike else ""
    return f"{command or 'wordsworth'} has no option {name}{meant}"


def _shown_names(arguments: ArgumentCollection) -> list[str]:
    shown = [
        name for argument in arguments if argument.parameter.show is not False for name in argument.names
    ]
    return [*shown, *GENERAL]


def _unknown_command(word: str) -> str:
    instead = command_hint(word)
    if word.startswith("-"):
        alike = difflib.get_close_matches(word, ("--help", "--version"), 1)
        meant = f"did you mean {alike[0]}?" if alike else "options stand behind a command"
        return f"there is no option {word}: {instead or meant} (wordsworth --help lists the commands)"
    alike = difflib.get_close_matches(word.lower(), COMMANDS, 1)
    if instead is None and alike:
        instead = f"did you mean {alike[0]}?"
    meant = f": {instead}" if instead else ""
    return f"there is no command {word!r}{meant} (wordsworth --help lists the commands)"


def _missing(error: MissingArgumentError, command: str) -> str:
    """Say which argument or which value of an option is missing."""
    assert error.argument is not None
    if error.keyword or any(token.keyword for token in error.argument.tokens):
        keyword = error.keyword or error.argument.tokens[-1].keyword
        return f"{keyword} has no value: give one behind it"
    name = error.argument.name
    example = f", as in: {COMMANDS[command].example}" if command else ""
    return f"{command or 'wordsworth'} needs {name}{example}"


def _unused(word: str, command: str, arguments: list[str]) -> str:
    """Say what is too much, and of which option it was thought to be the value."""
    before = arguments[arguments.index(word) - 1] if word in arguments else ""
    if before.startswith("-") and before != "--":
        return f"{before} takes no further value: leave out {word!r}"
    if command in WITHOUT_ARGUMENTS:
        return f"{command} takes no argument: leave out {word!r}"
    return (
        f"{command or 'wordsworth'} has no place for {word!r}: leave it out; a name with spaces needs quotes"
    )


def _given(token: Any, argument: Any) -> str:
    """Return an option and its value as they were typed, or as they stand in a file."""
    name = token.keyword or (argument.name.lstrip("-").upper() if argument is not None else "")
    if token.source in ("", "cli"):
        return f"{name} {token.value}"
    return f"--config {token.source}: {name.strip('[]')} = {token.value}"


def _kind(target: Any) -> str:
    if get_origin(target) is Literal:
        return either(map(str, get_args(target)))
    return KINDS.get(target, "another value")


def either(values: Iterable[str]) -> str:
    """Return values as a choice: `a, b or c`."""
    *some, last = values
    return f"{', '.join(some)} or {last}" if some else last


def _out_of_bounds(error: ValidationError) -> str:
    assert error.argument is not None
    given = _given(error.argument.tokens[0], error.argument)
    validators: Any = error.argument.parameter.validator
    for validator in validators:
        if isinstance(validator, Number):
            return f"{given}: give a number {_bounds(validator)}"
    return f"{given}: {error.exception_message}"


def _bounds(number: Number) -> str:
    """Return the range of a number in words: from 1 on; from 0 to 1; above 0, below 1."""
    if number.gte is not None and number.lte is not None:
        return f"from {number.gte:g} to {number.lte:g}"
    told = []
    if number.gte is not None:
        told.append(f"from {number.gte:g} on")
    if number.gt is not None:
        told.append(f"above {number.gt:g}")
    if number.lte is not None:
        told.append(f"at most {number.lte:g}")
    if number.lt is not None:
        told.append("finite" if math.isinf(number.lt) else f"below {number.lt}")
    return ", ".join(told)


def refuse_misread(tokens: list[str], arguments: ArgumentCollection) -> None:
    """Refuse words that the parser would read in another way than they are meant, without a word.

    `-output` would be `-o` with the value `utput`; `top-k=3`, `True` behind a flag, and `=` alone would be
    sources or values.

    Args:
        tokens: the command line behind the command.
        arguments: of the command.

    Raises:
        UserError: there is such a word.
    """
    options = {name: argument for argument in arguments for name in argument.names if name.startswith("--")}
    before = ""
    for token in tokens:
        if token == "--":
            return
        name, equals, value = token.partition("=")
        meant = [one for one in options if one.startswith(f"-{name.replace('_', '-')}")]
        if ONE_HYPHEN.fullmatch(name) and meant:
            told = f"{name}: an option of several letters has two hyphens: {min(meant, key=len)}"
            raise UserError(told, exit_code=2)
        if token == "=":
            raise UserError(f"{before} = ...: leave out the spaces around =", exit_code=2)
        option = f"--{name.replace('_', '-')}"
        if equals and option in options and not os.path.lexists(token):
            raise UserError(f"{token}: an option has two hyphens: {option} {value}", exit_code=2)
        if token.lower() in TRUTHS and before in options and options[before].hint is bool:
            raise UserError(f"{before} takes no value: leave out {token}", exit_code=2)
        before = token


def check_values(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse what the parser would take without a word: a fraction, which it rounds, where a whole number is
    meant, and an empty name, such as that of a variable that is not set.

    Raises:
        UserError: there is such a value.
    """
    for argument in arguments:
        is_whole = int in (argument.hint, *get_args(argument.hint))
        is_named = not argument.name.startswith("-") or argument.name in NAMES
        for token in argument.tokens:
            if is_whole and "." in token.value:
                raise UserError(f"{_given(token, argument)}: give a whole number", exit_code=2)
            if is_named and token.implicit_value is UNSET and not token.value.strip():
                name = token.keyword or argument.name
                raise UserError(f"{name} is empty: is a variable not set?", exit_code=2)
