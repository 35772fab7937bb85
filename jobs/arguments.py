"""Make the arguments of a command from Python values, as the command line makes them from words."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wordsworth.pipeline.errors import UserError

Options = TypeVar("Options")

NAMES = ("classes", "prompt")  # a list stays one: a class's name and a prompt may hold a comma


def command_arguments(command: Callable[..., int], **options: Any) -> dict[str, Any]:
    """Return the arguments of a command: its groups of options are made from the options that they declare.

    Raises:
        UserError: the command line would refuse a value.
        TypeError: the command has no option of that name, needs one that is not given, or a text stands
            where an option takes numbers.
    """
    if "json" in options:
        raise TypeError(f"{command.__name__}() has no option 'json': it prints nothing")
    hints = typing.get_type_hints(command, include_extras=True)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "sources":
            continue
        group = _group_of(hints[name])
        if group is not None:
            own = typing.get_type_hints(group).keys() & options
            arguments[name] = filled(group, {key: options.pop(key) for key in own})
        elif name in options:
            arguments[name] = _as_option(name, hints[name], options.pop(name))
        elif parameter.default is not parameter.empty:
            arguments[name] = parameter.default
        else:
            raise TypeError(f"{command.__name__}() needs the option {name!r}")
    if options:
        raise TypeError(f"{command.__name__}() has no option {min(options)!r}")
    return arguments


def filled(group: Callable[..., Options], options: dict[str, Any]) -> Options:
    """Return a group of options with these values.

    Raises:
        UserError: the command line would refuse a value.
        TypeError: the group has no option of a name, or needs one that is not given.
    """
    hints = typing.get_type_hints(group, include_extras=True)
    return group(**{name: _as_option(name, hints.get(name), value) for name, value in options.items()})


def _group_of(hint: Any) -> Any:
    """Return the dataclass of a group of options, or None for a single option."""
    return next((one for one in _parts(hint) if dataclasses.is_dataclass(one)), None)


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a hint and all hints in it, such as those of a union."""
    yield hint
    if typing.get_origin(hint) is not typing.Literal:
        for one in typing.get_args(hint):
            yield from _parts(one)


def _as_option(name: str, hint: Any, value: Any) -> Any:
    """Return the value of an option as the command line would give it.

    Where the option is text, names are joined by commas, but for NAMES. Where it is a list, a text is its
    only element.
    """
    _check(name, hint, value)
    parts = list(_parts(hint))
    kinds = {typing.get_origin(one) for one in parts}
    if list in kinds and value is not None:
        return as_list(value)
    if tuple in kinds and isinstance(value, str):
        raise TypeError(f"{name} takes numbers, such as (0.5, 0.5, 0.5), and not the text {value!r}")
    if isinstance(value, Path):
        return str(value)
    if str not in parts or value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return list(map(str, value)) if name in NAMES else ",".join(map(str, value))
    return str(value)


def _check(name: str, hint: Any, value: Any) -> None:
    """Check the range of a number and the choice of a text, as the command line does.

    Raises:
        UserError: the value is out of range, or no choice.
    """
    for one in _parts(hint):
        for validator in getattr(one, "validator", None) or ():
            try:
                validator(type(value), value)
            except ValueError as error:
                raise UserError(f"{name}={value!r}: {error}") from error
        choices = typing.get_args(one) if typing.get_origin(one) is typing.Literal else ()
        if choices and value is not None and value not in choices:
            raise UserError(f"{name}={value!r}: choose one of {', '.join(map(str, choices))}")


def as_list(given: str | Path | Sequence[str]) -> list[str]:
    """Return one text or several as a list of texts."""
    if isinstance(given, str | Path):
        return [str(given)]
    return [str(one) for one in given]
