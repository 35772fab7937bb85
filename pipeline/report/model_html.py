"""Make self-contained pages: one file with its style and its images, and no request to anyone."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wordsworth.pipeline.errors import shown

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_NAME = 160  # characters of a name from data, at most


def render(template: str, **context: Any) -> str:
    """Return a page as HTML. Every text that a template prints passes `shown` and is escaped."""
    return _environment().get_template(template).render(**context)


def data_uri(data: bytes) -> Markup:
    """Return a PNG file as the address of an <img>."""
    return Markup(f"data:image/png;base64,{base64.b64encode(data).decode()}")


def short_name(text: str) -> str:
    """Return a name from data as one short line without commands; its two ends stay."""
    told = shown(text)
    if len(told) <= SHOWN_NAME:
        return told
    half = SHOWN_NAME // 2 - 2
    return f"{told[:half]} … {told[-half:]}"


def number(value: float) -> str:
    """Return a number for people: thousands with commas, three digits of a small one."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{share:.1%}"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: 1 row, 2 rows."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"short_name": short_name, "number": number, "plural": plural})
    return environment


def _finalize(value: Any) -> Any:
    """Return what a template prints: text from anywhere is one line without commands, markup stays."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return shown(value)
    return value
