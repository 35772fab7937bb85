"""Open pages in a real browser: Debian's Chromium without a window, and axe-core, which looks for faults of
accessibility."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.servers import ROOT, MissingServer

AXE = ROOT / "build" / "servers" / "node_modules" / "axe-core" / "axe.min.js"
# Chromium as root has no sandbox of its own; the pages are ours. Nothing is fetched behind a page's back.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--no-first-run",
)


class Browser:
    """Drive one Chromium.

    Attributes:
        driver: of selenium.
    """

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Open a file in a window of this width, with the system's colours light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.media("screen", dark=dark)
        self.driver.get_log("performance")  # of the page before
        self.driver.get_log("browser")
        self.driver.get(page.as_uri())

    def media(self, kind: str, *, dark: bool = False) -> None:
        """Show the page on a screen or as it is printed, with the system's colours light or dark."""
        wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body in JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def requests(self) -> list[str]:
        """Return the addresses that were asked for the page: not those that stand in the page itself, and not
        those that its policy refused."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        refused = {
            event["params"]["requestId"]
            for event in events
            if event["method"] == "Network.loadingFailed" and event["params"].get("blockedReason") == "csp"
        }
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        asked = [one["request"]["url"] for one in sent if one["requestId"] not in refused]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return what the browser wrote to the console of the page."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def faults(self) -> list[str]:
        """Return the serious and critical faults that axe-core finds."""
        self.run(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "const done = arguments[0];"
            "axe.run().then(found => done(found.violations), fault => done([String(fault)]));"
        )
        return [
            f"{fault['id']}: {fault['nodes'][0]['html'][:200]}: {fault['nodes'][0]['failureSummary'][:200]}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium.

    Raises:
        MissingServer: the browser, its driver or axe-core is not installed.
    """
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if not path] + ([] if AXE.exists() else ["axe-core"])
    if missing:
        raise MissingServer(f"{', '.join(missing)}: not installed: make servers")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(programs["chromium"])
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs["chromedriver"])))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
