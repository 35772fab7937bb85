"""Make the arguments of a command from Python values, as the command line makes them from words."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Options = TypeVar("Options")


def command_arguments(command: Callable[..., int], **options: Any) -> dict[str, Any]:
    """Return the arguments of a command: its groups of options are made from the options that they declare.

    Raises:
        TypeError: the command has no option of that name, needs one that is not given, or a text stands
            where an option takes numbers.
    """
    if "json" in options:
        raise TypeError(f"{command.__name__}() has no option 'json': it prints nothing")
    hints = typing.get_type_hints(command)
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
        TypeError: the group has no option of a name, or needs one that is not given.
    """
    hints = typing.get_type_hints(group)
    return group(**{name: _as_option(name, hints.get(name), value) for name, value in options.items()})


def _group_of(hint: Any) -> Any:
    """Return the dataclass of a group of options, or None for a single option."""
    for one in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(one):
            return one
    return None


def _as_option(name: str, hint: Any, value: Any) -> Any:
    """Return the value of an option as the command line would give it.

    Where the option is text, names are joined by commas. Where it is a list, a text is its only element.
    """
    kinds = {typing.get_origin(one) for one in (hint, *typing.get_args(hint))}
    if list in kinds and value is not None:
        return as_list(value)
    if tuple in kinds and isinstance(value, str):
        raise TypeError(f"{name} takes numbers, such as (0.5, 0.5, 0.5), and not the text {value!r}")
    if isinstance(value, Path):
        return str(value)
    if hint is not str or isinstance(value, str):
        return value
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def as_list(given: str | Path | Sequence[str]) -> list[str]:
    """Return one text or several as a list of texts."""
    if isinstance(given, str | Path):
        return [str(given)]
    return [str(one) for one in given]
