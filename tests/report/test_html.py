"""Pages are one file: text from data is text, and nothing else than the page's own script runs."""

import base64
import hashlib
import re

import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader

from wordsworth.pipeline.report import html
from wordsworth.pipeline.report.charts import histogram, scatter
from wordsworth.pipeline.report.html import bytes_of, data_uri, duration, number, percent, render, short_name

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31mred \u202ereversed \0 {{ 7 * 7 }}"
PAGE = """{% extends "base.html.j2" %}{% block heading %}{{ text }}{% endblock %}
{% block content %}<p title="{{ text }}">{{ text | short_name }}</p>{% endblock %}"""


@pytest.fixture
def page(monkeypatch) -> str:
    environment = html._environment()
    loaders = [DictLoader({"page of a test": PAGE}), environment.loader]
    monkeypatch.setattr(environment, "loader", ChoiceLoader(loaders))
    return render("page of a test", text=HOSTILE, sections=[])


def test_text_from_data_is_text(page: str):
    assert page.count("<script") == 1  # the page's own
    assert "<img src=x" not in page
    for character in ("\x1b", "\u202e", "\0"):
        assert character not in page
    assert "\\x1b[31mred" in page
    assert "\\u202ereversed" in page
    assert "{{ 7 * 7 }}" in page


def test_text_in_charts_is_text():
    chart = histogram(HOSTILE, [1], [HOSTILE], [(0.5, HOSTILE)])
    points = scatter(np.zeros((1, 2)), ["s0"], [HOSTILE])
    for drawn in (chart, points):
        assert "<script" not in drawn
        assert "<img" not in drawn


def test_the_policy_lets_the_pages_own_script_and_style_run_and_nothing_else(page: str):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert " style=" not in page  # the policy would refuse it


def test_a_page_names_no_other_place(page: str):
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "@import" not in page
    assert "url(" not in page


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (number(1234567), "1,234,567"),
        (number(0.12345), "0.123"),
        (number(None), "–"),
        (percent(0.0001), "< 0.1%"),
        (percent(0.0), "0.0%"),
        (bytes_of(1_500_000), "1.5 MB"),
        (bytes_of(12), "12 B"),
        (duration(3723), "1 h 2 min"),
        (duration(0.5), "0.5 s"),
        (short_name("k" * 500), f"{'k' * 78} … {'k' * 78}"),
        (short_name(None), ""),
        (data_uri(b"\x89PNG")[:15], "data:image/png;"),
    ],
)
def test_figures_are_written_for_people(told: str, expected: str):
    assert told == expected
