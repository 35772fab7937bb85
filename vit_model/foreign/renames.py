"""Rename other people's tensors to our names and back: one table for each format, read in both directions.

A line of a table names a tensor of ours (timm's name), the tensor or tensors of theirs that hold its values,
and the layout in which they store the values. In the names {i} and {j} stand for a number, {i+1} for that
number plus one, {p} for "weight" or "bias". Nothing here computes: every layout is a permutation, so a table
read and written again is bit-identical.

D width, H heads, D_h = D / H, P patch size, N patches, K classes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.weights import State


@dataclass(frozen=True)
class Layout:
    """Hold the way of one tensor of theirs to ours, and back for a model of this config."""

    read: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
    write: Callable[[torch.Tensor, ViTConfig], torch.Tensor] = lambda t, _: t


# Behind each layout: the shape of their tensor.
PLAIN = Layout()
TRANSPOSED = Layout(lambda t: t.T, lambda t, _: t.T)  # (in, out): flax's Dense, CLIP's proj
VECTOR = Layout(lambda t: t.reshape(-1))  # (C,) or (1, 1, 1, C): a scale or bias
TOKEN = Layout(lambda t: t.reshape(1, 1, -1), lambda t, _: t.reshape(-1))  # (D,)
ROWS = Layout(lambda t: t[None], lambda t, _: t[0])  # (N, D)
KERNEL = Layout(lambda t: t.permute(3, 2, 0, 1), lambda t, _: t.permute(2, 3, 1, 0))  # (P, P, in, out)
HEADS_IN = Layout(  # (D, H, D_h)
    lambda t: t.flatten(1).T, lambda t, config: t.T.reshape(-1, config.heads, config.width // config.heads)
)
HEADS_IN_BIAS = Layout(lambda t: t.reshape(-1), lambda t, config: t.reshape(config.heads, -1))  # (H, D_h)
HEADS_OUT = Layout(  # (H, D_h, D)
    lambda t: t.flatten(0, 1).T, lambda t, config: t.T.reshape(config.heads, -1, config.width)
)


@dataclass(frozen=True)
class Rule:
    """Hold one line of a table.

    Attributes:
        ours: our name.
        theirs: their names. Several tensors of theirs are the parts of ours along its first axis, such as q,
            k and v.
        layout: of each of their tensors.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = PLAIN


Table = tuple[Rule, ...]
Names = dict[str, str | tuple[str, ...]]  # our name: their name, or their names


def read(state: State, table: Table) -> tuple[State, list[str]]:
    """Rename their tensors to ours. A tensor of ours of which a part is missing is missing whole.

    Returns:
        Our tensors, and the names that no line of the table knows.
    """
    known = []
    for rule in table:
        for part, name in enumerate(rule.theirs):
            known.append((_pattern(name), rule, part))
    parts: dict[str, dict[int, torch.Tensor]] = {}
    num_parts: dict[str, int] = {}
    unknown = []
    for key, tensor in state.items():
        for pattern, rule, part in known:
            match = pattern.fullmatch(key)
            if match:
                ours = _fill(rule.ours, match)
                parts.setdefault(ours, {})[part] = rule.layout.read(tensor)
                num_parts[ours] = len(rule.theirs)
                break
        else:
            unknown.append(key)
    renamed = {}
    for name, found in parts.items():
        if len(found) == num_parts[name]:
            renamed[name] = torch.cat([found[part] for part in sorted(found)]).contiguous()
    return renamed, unknown


def write(state: State, table: Table, config: ViTConfig, format_name: str) -> State:
    """Rename our tensors to theirs: the inverse of `read`. Of two lines for one tensor, the first is taken.

    Raises:
        ModelError: the format has no place for a tensor.
    """
    theirs: State = {}
    homeless = []
    for key, tensor in state.items():
        for rule in table:
            match = _pattern(rule.ours).fullmatch(key)
            if match:
                for name, part in zip(rule.theirs, tensor.chunk(len(rule.theirs)), strict=True):
                    theirs[_fill(name, match)] = rule.layout.write(part, config).contiguous()
                break
        else:
            homeless.append(key)
    if homeless:
        raise ModelError(f"the format {format_name} has no place for {', '.join(homeless[:3])} of this model")
    return theirs


def their_names(ours: str, table: Table) -> Iterator[str]:
    """Yield the names of a tensor of ours in their files: none if the table has no line for the tensor."""
    for rule in table:
        match = _pattern(rule.ours).fullmatch(ours)
        if match:
            for name in rule.theirs:
                yield _fill(name, match)
            return


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Return a pattern for the names that a template stands for."""
    groups = {
        r"\{i\}": r"(?P<i>\d+)",
        r"\{i\+1\}": r"(?P<i1>\d+)",
        r"\{j\}": r"(?P<j>\d+)",
        r"\{j\+1\}": r"(?P<j1>\d+)",
        r"\{p\}": "(?P<p>weight|bias)",
    }
    pattern = re.escape(template)
    for escaped, group in groups.items():
        pattern = pattern.replace(escaped, group)
    return re.compile(pattern)


def _fill(template: str, match: re.Match[str]) -> str:
    """Return the template with the numbers and words that `match` found in the name on the other side."""
    words = {name: value for name, value in match.groupdict().items() if value is not None}
    for name in ("i", "j"):  # either side may be the one that counts from 1
        if name in words:
            words[f"{name}+1"] = str(int(words[name]) + 1)
        elif f"{name}1" in words:
            words[name] = str(int(words[f"{name}1"]) - 1)
    for name, value in words.items():
        template = template.replace("{" + name + "}", value)
    return template


# ---- building a table ----


def lines(names: Names, layout: Layout = PLAIN) -> Table:
    """Return rules of one layout, for {ours: theirs}."""
    return tuple(Rule(ours, _as_parts(theirs), layout) for ours, theirs in names.items())


def block_lines(prefix: str, names: Names) -> Table:
    """Return rules for weight and bias of the parts of every block, for {ours: theirs}."""
    rules = []
    for ours, theirs in names.items():
        parts = tuple(f"{prefix}{part}.{{p}}" for part in _as_parts(theirs))
        rules.append(Rule(f"blocks.{{i}}.{ours}.{{p}}", parts))
    return tuple(rules)


def _as_parts(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs
