"""The pages of a model and of a training in a real browser: they open, fit a phone, and are read by all."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.faults.servers import served
from tests.support.browser import Browser, chromium
from tests.support.builders import photo
from wordsworth.pipeline.report.explanation import ExplainSettings, explain
from wordsworth.pipeline.report.training_page import write_training_report
from wordsworth.pipeline.report.write_figures import write_explanation
from wordsworth.pipeline.sources.model_inputs import find_images
from wordsworth.vit_model.model_folder import load_folder

pytestmark = pytest.mark.server  # a browser is started

HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def explained(small_model, tmp_path_factory) -> Path:
    """The page of two images, one of a name that would be markup."""
    folder = tmp_path_factory.mktemp("explained")
    (folder / f"{HOSTILE}.jpg").write_bytes(photo(1))
    (folder / ("long-" * 30 + ".jpg")).write_bytes(photo(2))
    images = find_images(sorted(map(str, folder.iterdir())), {})
    settings = ExplainSettings(model=HOSTILE, precision="fp32", device="cpu")
    files = write_explanation(explain(load_folder(small_model), images, settings), str(folder / "out"), {})
    return Path(files[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The page of a training of twelve epochs."""
    folder = tmp_path_factory.mktemp("trained")
    lines = []
    for epoch in range(1, 13):
        figures = {"loss": 2 / epoch, "accuracy": 1 - 1 / (epoch + 1), "val_loss": 3 / epoch}
        figures |= {"val_accuracy": 1 - 1 / epoch, "val_images": 10, "val_errors": 0}
        figures |= {"val_recall": [0.5, None, 1 - 1 / epoch]}
        about = {"kind": "epoch", "epoch": epoch, "step": 7 * epoch, "lr": 0.01 / epoch, "errors": 0}
        lines.append(json.dumps(about | figures))
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return Path(write_training_report(str(folder), {}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from served(chromium)


@pytest.mark.parametrize("name", ["explained", "trained"])
def test_a_page_opens_without_a_complaint_a_request_or_a_serious_fault(name, browser, request):
    page = request.getfixturevalue(name)
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.driver.title != "taken"
    sizes = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "const images = [...document.querySelectorAll('main img')];"
        "Promise.all(images.map(one => one.decode().then(() => one.naturalWidth, () => 0))).then(done);"
    )
    assert sizes and min(sizes) > 300
    assert browser.faults() == []
    browser.open(page, width=375, dark=True)
    assert browser.faults() == []


@pytest.mark.parametrize("name", ["explained", "trained"])
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_scrolls_sideways(name, width, browser, request):
    browser.open(request.getfixturevalue(name), width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_the_epochs_are_sorted_by_any_column(trained, browser):
    browser.open(trained)
    head = browser.driver.find_elements("css selector", "table[data-sortable] th button")
    head[4].send_keys(Keys.ENTER)  # accuracy on --val
    first = "return document.querySelector('table[data-sortable] tbody tr').cells[0].textContent"
    worst = browser.run(first)
    head[4].send_keys(Keys.ENTER)
    assert {worst, browser.run(first)} == {"1", "12"}


def test_the_figures_of_the_page_are_the_files_beside_it(explained, browser):
    browser.open(explained)
    shown = browser.run("return [...document.querySelectorAll('main img')].map(image => image.src)")
    of_files = [
        f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        for file in explained.parent.glob("*.png")
    ]
    assert sorted(shown) == sorted(of_files)
