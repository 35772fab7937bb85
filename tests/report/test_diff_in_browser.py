"""The page of `wordsworth diff` in a real browser: it opens, sorts, fits a phone, and is read by all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.servers import served
from tests.support.browser import Browser, chromium
from tests.support.report_runs import Made, make_run
from tests.support.samples import encoded, photo, write_tar
from wordsworth.pipeline.report.diff import compare_runs
from wordsworth.pipeline.report.diff_page import write_diff_page
from wordsworth.pipeline.report.rows import RunRows

pytestmark = pytest.mark.server  # a browser is started

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
LABELS = (HOSTILE, "a-long-name-" * 20, "cat", "dog")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Two runs with flips, errors of one run, rows of one run, and names that would be markup."""
    folder = tmp_path_factory.mktemp("diff")
    for name, count, broken in (("a", 130, 3), ("b", 129, 4)):
        names = [f"{HOSTILE}/{'long-' * 30}{n:03d}.jpg" for n in range(count)]
        images = [encoded(photo(n % 9, 64, 48)) for n in range(count)]
        images[broken] = b"no image"
        members = []
        for n, (key, data) in enumerate(zip(names, images, strict=True)):
            members += [(key, data), (key.replace(".jpg", ".cls"), LABELS[n * n % 4].encode())]
        write_tar(folder / "in" / "x.tar", members)

        def answer(number: int, is_b: bool = name == "b") -> Made:
            label = number % 2
            if is_b and number % 20 == 0:
                label += 2
            return Made(label, 0.9 - 0.3 * is_b, (1.0, float(is_b), number / 10, 0.0))

        make_run(folder / name, folder / "in", answer=answer, labels=LABELS, keep=("cls",))
        if name == "a":
            (folder / "in" / "x.tar").rename(folder / "of-a.tar")
    (folder / "of-a.tar").rename(folder / "in" / "x.tar")
    a, b = (RunRows.open(str(folder / name)) for name in ("a", "b"))
    found = compare_runs(a, b, "cls")
    assert found.scores.labels and found.only_a.num and found.errors_a.num and found.errors_b.num
    write_diff_page(a, found, str(folder / "diff.html"))
    return folder / "diff.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from served(chromium)


def open_all(browser: Browser) -> None:
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; });")


def test_it_opens_without_a_complaint_and_asks_nobody_for_anything(browser: Browser, page: Path):
    browser.open(page)
    open_all(browser)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert "taken" not in browser.driver.title


def test_its_images_are_there_and_open_large_with_both_scores(browser: Browser, page: Path):
    browser.open(page)
    open_all(browser)
    assert browser.run("return document.querySelectorAll('.gallery img').length") >= 12
    browser.run("document.querySelector('#flips button.thumb').click()")
    caption = browser.run("return document.getElementById('viewer-caption').textContent")
    assert "0.900 → " in caption and caption.endswith(" 0.600")


def test_it_says_which_run_is_right_and_shows_what_became_wrong(browser: Browser, page: Path):
    browser.open(page)
    cells = browser.run(
        "return [...document.querySelectorAll('#truth table td.num')].map(one => one.innerText)"
    )
    assert sum(int(cell) for cell in cells[:4]) > 100
    assert browser.run("return document.querySelectorAll('#truth svg.chart circle.s1').length")
    browser.run("document.querySelector('#became-wrong button.thumb').click()")
    detail = browser.run("return document.getElementById('viewer-detail').textContent")
    assert detail.startswith("it is ")


def test_its_tables_sort(browser: Browser, page: Path):
    browser.open(page)
    column = "return [...document.querySelectorAll('#scores tbody tr')].map(row => row.cells[5].textContent)"
    before = browser.run(column)
    assert before == sorted(before, key=float, reverse=True) and len(before) == 2
    browser.run("document.querySelectorAll('#scores th button')[5].click()")
    assert browser.run(column) == sorted(before, key=float)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (375, True)])
def test_it_fits_and_all_can_read_it(browser: Browser, page: Path, width: int, dark: bool):
    browser.open(page, width=width, dark=dark)
    open_all(browser)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.faults() == []
    assert browser.run("return axe.version")
