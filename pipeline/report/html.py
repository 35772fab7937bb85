"""Make self-contained pages: one file with its style, its script and its images, and no request to anyone."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wordsworth.pipeline.errors import plural, shown

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_NAME = 160  # characters of a name from data, at most


def render(template: str, **context: Any) -> str:
    """Return a page as HTML.

    Every text that a template prints passes `shown` and is escaped, also where a template's writer did not
    think of it: a name from data is text and nothing else. The page may run its own script and style alone,
    by their hashes, and may load nothing.

    Args:
        template: name of a file in templates/, which extends base.html.j2.
        context: what the template prints.
    """
    style = _asset("style.css")
    script = _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    assets = {"page_style": Markup(style), "page_script": Markup(script), "page_policy": Markup(policy)}
    return _environment().get_template(template).render(**assets, **context)


def data_uri(data: bytes) -> Markup:
    """Return an image as the address of an <img>: WebP, JPEG, PNG or GIF, told apart by its first bytes."""
    return Markup(f"data:image/{_kind(data)};base64,{base64.b64encode(data).decode()}")


def short_name(text: str | None) -> str:
    """Return a name from data as one short line without commands; its two ends stay."""
    if text is None:
        return ""
    told = shown(text)
    if len(told) <= SHOWN_NAME:
        return told
    half = SHOWN_NAME // 2 - 2
    return f"{told[:half]} … {told[-half:]}"


def number(value: float | None) -> str:
    """Return a number for people: thousands with commas, three digits of a small one."""
    if value is None:
        return "–"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.3g}"


def percent(share: float | None) -> str:
    """Return a share as a percentage; one that is small and not zero does not become zero."""
    if share is None:
        return "–"
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{share:.1%}"


def bytes_of(size: float | None) -> str:
    """Return a size with its unit."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:,.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Return a time with the units that matter."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


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
    filters = (short_name, number, percent, bytes_of, duration, plural)
    environment.filters.update({function.__name__: function for function in filters})
    return environment


def _finalize(value: Any) -> Any:
    """Return what a template prints: text from anywhere is one line without commands, markup stays."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return shown(value)
    return value


@cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _kind(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for kind, begin in (("png", b"\x89PNG"), ("gif", b"GIF8")):
        if data.startswith(begin):
            return kind
    return "jpeg"
