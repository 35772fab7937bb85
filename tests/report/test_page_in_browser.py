"""The report in a real browser: it opens, sorts, searches and is read by keyboard, also on a phone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.faults.servers import served
from tests.support.browser import Browser, chromium
from tests.support.report_runs import Made, make_run
from tests.support.samples import encoded, photo, write_tar
from wordsworth.pipeline.report.page import write_report

pytestmark = pytest.mark.server  # a browser is started

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
NUM_LABELS = 70


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of a run with many labels, errors, copies of an image, and names that would be markup."""
    folder = tmp_path_factory.mktemp("page")
    images = [(f"{HOSTILE}/{'long-' * 30}{n:03d}.jpg", encoded(photo(n % 40, 64, 48))) for n in range(150)]
    labels = (HOSTILE, *[f"label {number}" for number in range(1, NUM_LABELS)])
    members = [(f"{HOSTILE}y.jpg", b"no image"), ("x.jpg", b"no image")]
    for number, (name, data) in enumerate(images):
        truth = labels[number % 4] if number % 7 else f"{HOSTILE}, and no class of the model"
        members += [(name, data), (name.replace(".jpg", ".cls"), truth.encode())]
    write_tar(folder / "in.tar", members)

    def answer(number: int) -> Made:
        spread = np.random.default_rng(number % 140).normal(size=4)
        return Made(0 if number % 3 else number % NUM_LABELS, 0.2 + (number * 37 % 100) / 130, tuple(spread))

    make_run(folder / "out", folder / "in.tar", answer=answer, labels=labels, keep=("cls",))
    write_report(str(folder / "out"), truth="cls")
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from served(chromium)


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page)
    return browser


def rows_of(browser: Browser) -> list[list[str]]:
    return browser.run(
        "return [...document.querySelectorAll('#labels-table tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )


def background(browser: Browser) -> str:
    return browser.run("return getComputedStyle(document.body).backgroundColor")


def test_it_opens_without_a_complaint_and_asks_nobody_for_anything(opened: Browser, page: Path):
    opened.run("document.querySelectorAll('details').forEach(one => { one.open = true; });")
    opened.run("document.querySelectorAll('img').forEach(one => one.scrollIntoView());")
    assert opened.complaints() == []
    assert opened.requests() == [page.as_uri()]
    assert "taken" not in opened.driver.title


def test_a_request_and_an_error_would_be_seen(opened: Browser, page: Path, tmp_path: Path):
    other = tmp_path / "other.html"
    broken = '<img src="http://127.0.0.1:9/x.png"><script>nothing.there()</script>'
    other.write_text(f"<!doctype html><title>x</title>{broken}")
    opened.open(other)
    assert "http://127.0.0.1:9/x.png" in opened.requests()
    assert any("nothing is not defined" in line for line in opened.complaints())
    page_with = tmp_path / "page.html"
    page_with.write_text(page.read_text().replace("</main>", f"{broken}</main>"))
    opened.open(page_with)
    assert opened.requests() == [page_with.as_uri()]  # the page's policy stops it
    assert any("Content Security Policy" in line for line in opened.complaints())


def test_every_image_is_drawn(opened: Browser):
    opened.run("document.querySelectorAll('details').forEach(one => { one.open = true; });")
    sizes = opened.driver.execute_async_script(
        "const done = arguments[0];"
        "const images = [...document.querySelectorAll('.thumb img')];"
        "Promise.all(images.map(one => one.decode().then(() => one.naturalWidth, () => 0))).then(done);"
    )
    assert len(sizes) > 60
    assert min(sizes) == 64


def test_the_table_sorts_and_searches(opened: Browser):
    head = opened.driver.find_elements(By.CSS_SELECTOR, "#labels-table th button")
    counts = [int(row[1]) for row in rows_of(opened)]
    assert counts == sorted(counts, reverse=True)
    head[1].click()
    assert opened.run("return document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    assert int(rows_of(opened)[0][1]) == min(counts)
    head[0].send_keys(Keys.ENTER)
    names = [row[0] for row in rows_of(opened)]
    assert names[1:] == opened.run("return arguments[0].sort((a, b) => a.localeCompare(b))", names)[1:]
    search = opened.driver.find_element(By.ID, "labels-search")
    search.send_keys("LABEL 12")
    assert [row[0] for row in rows_of(opened)] == ["label 12"]
    assert "1 of 1 labels that match" in opened.driver.find_element(By.ID, "labels-status").text
    search.send_keys("nothing")
    assert rows_of(opened) == []


def test_a_gallery_opens_turns_and_closes_by_keyboard(opened: Browser):
    driver = opened.driver
    thumbs = driver.find_elements(By.CSS_SELECTOR, "details[open] .gallery:first-of-type button.thumb")
    opened.run("arguments[0].focus()", thumbs[0])
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    viewer = driver.find_element(By.ID, "viewer")
    assert viewer.is_displayed()
    first = driver.find_element(By.ID, "viewer-image").get_attribute("src")
    assert driver.find_element(By.ID, "viewer-place").text == "1 of 6"
    assert driver.find_element(By.ID, "viewer-caption").text == thumbs[0].get_attribute("data-caption")
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert driver.find_element(By.ID, "viewer-place").text == "2 of 6"
    assert driver.find_element(By.ID, "viewer-image").get_attribute("src") != first
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert not viewer.is_displayed()
    assert opened.run("return document.activeElement === arguments[0]", thumbs[1])


def test_the_mistakes_open_large_with_their_class_and_a_pair_leads_to_its_images(opened: Browser):
    driver = opened.driver
    thumb = driver.find_element(By.CSS_SELECTOR, "#truth .gallery button.thumb")
    opened.run("arguments[0].focus()", thumb)
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    assert ", but it is " in driver.find_element(By.ID, "viewer-caption").text
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    opened.run("document.querySelectorAll('details').forEach(one => { one.open = false; });")
    link = driver.find_elements(By.CSS_SELECTOR, "#truth tbody a")[3]
    link.send_keys(Keys.ENTER)
    shelf = driver.find_element(By.ID, link.get_attribute("href").rpartition("#")[2])
    assert shelf.get_attribute("open")
    assert shelf.find_elements(By.CSS_SELECTOR, "button.thumb")


def test_the_calibration_is_a_picture_with_a_name_and_a_table(opened: Browser):
    chart = opened.driver.find_element(By.CSS_SELECTOR, "#truth svg.chart")
    assert "expected error" in chart.get_attribute("aria-label")
    points = opened.run("return document.querySelectorAll('#truth svg.chart circle').length")
    rows = opened.run("return document.querySelectorAll('#truth details table tbody tr').length")
    assert points == rows >= 5


def test_a_label_leads_to_its_gallery(opened: Browser):
    opened.run("document.querySelectorAll('details').forEach(one => { one.open = false; });")
    link = opened.driver.find_elements(By.CSS_SELECTOR, "#labels-table tbody a")[4]
    target = link.get_attribute("href").rpartition("#")[2]
    link.send_keys(Keys.ENTER)
    assert opened.driver.find_element(By.ID, target).get_attribute("open")


def test_the_map_shows_the_image_under_the_pointer_and_under_the_keyboard(opened: Browser):
    driver = opened.driver
    peek = driver.find_element(By.ID, "map-peek")
    circle = driver.find_elements(By.CSS_SELECTOR, "#map-points circle")[3]
    opened.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", circle)
    ActionChains(driver).move_to_element(circle).perform()
    assert peek.is_displayed()
    assert driver.find_element(By.ID, "map-image").get_attribute("src").startswith("data:image/webp")
    assert driver.find_element(By.ID, "map-key").text
    ActionChains(driver).move_to_element(driver.find_element(By.CSS_SELECTOR, "nav.sections a")).perform()
    assert not peek.is_displayed()
    field = driver.find_element(By.ID, "map-field")
    seen = set()
    for key in (Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.END):
        field.send_keys(key)
        assert peek.is_displayed()
        seen.add(field.get_attribute("aria-activedescendant"))
    assert len(seen) >= 3
    field.send_keys(Keys.ESCAPE)
    assert not peek.is_displayed()


def test_a_labels_button_brings_out_its_points(opened: Browser):
    button = opened.driver.find_element(By.CSS_SELECTOR, "#map-keys button")
    button.send_keys(Keys.SPACE)
    brought = "return document.querySelectorAll('.points.chosen circle.in').length"
    assert opened.run(brought) == int(button.text.split()[-1])
    button.send_keys(Keys.SPACE)
    assert opened.run(brought) == 0


def test_dark_is_the_systems_and_the_readers_choice(browser: Browser, page: Path):
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.open(page)
    light = background(browser)
    browser.open(page, dark=True)
    dark = background(browser)
    assert dark != light
    browser.driver.find_element(By.ID, "theme").send_keys(Keys.ENTER)
    assert background(browser) == light
    assert browser.driver.find_element(By.ID, "theme").get_attribute("aria-pressed") == "false"
    browser.open(page, dark=True)
    assert background(browser) == light  # the choice stays
    browser.media("print", dark=True)
    assert background(browser) == "rgb(255, 255, 255)"
    assert not browser.driver.find_element(By.CSS_SELECTOR, "nav.sections").is_displayed()
    browser.run("localStorage.clear()")


@pytest.mark.parametrize("width", [375, 320, 1280])
def test_nothing_scrolls_sideways(browser: Browser, page: Path, width: int):
    browser.open(page, width=width)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; });")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.run("document.querySelector('button.thumb').click()")
    assert browser.run("return document.getElementById('viewer').scrollWidth") <= width


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (375, True)])
def test_no_serious_fault_of_accessibility_is_found(browser: Browser, page: Path, width: int, dark: bool):
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; });")
    assert browser.faults() == []
    browser.run("document.querySelector('button.thumb').click()")
    assert browser.faults() == []
    assert browser.run("return axe.version")  # a page that axe did not look at has no faults either
