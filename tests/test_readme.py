"""Run the README's blocks in a folder of photographs, with a hub on loopback."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm

from tests.support.builders import photo
from tests.support.dual_encoders import randomise
from tests.support.hub import hub
from wordsworth import open_run

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(sh|python)\n# ([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {title: code for _, title, code in BLOCK.findall(README)}
REPOSITORY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
PHOTOGRAPHS = ["cats/1.jpg", "cats/2.jpg", "dogs/3.jpg", "dogs/a dog.jpg"]
TIMEOUT_S = 240  # of a block


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder that has `photos/` and the run `labels/` that the first block made of it."""
    folder = tmp_path_factory.mktemp("readme")
    for number, name in enumerate(PHOTOGRAPHS):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    (folder / "metadata.csv").write_text("key,shop\n" + "".join(f"{name},north\n" for name in PHOTOGRAPHS))
    saved = folder / "of-timm"
    saved.mkdir()
    timm.models.save_for_hf(randomise(timm.create_model("vit_tiny_patch16_224")), saved)
    with hub({REPOSITORY: saved}) as (endpoint, _):
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "RAY_AUTH_MODE": "token",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            shell(folder, "wordsworth: your own folder")
            yield folder


def shell(folder: Path, title: str) -> str:
    """Run a block as a person pastes it, and return its output."""
    command = ["bash", "-eo", "pipefail", "-c", BLOCKS[title]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_block_of_the_readme_is_run_here_or_shows_the_code():
    fences = re.findall(r"^```(?:sh|python)\n([^\n]*)", README, re.MULTILINE)
    chain = [line for line in fences if line == "receipts = ("]
    assert len(chain) == 1 and [line[2:] for line in fences if line not in chain] == list(BLOCKS)
    assert set(BLOCKS) == {
        "wordsworth: your own folder",
        "wordsworth: four of them",
        "Python: the fifth, a join with a table of yours",
        "Python: the same from a program",
    }


def test_three_lines_label_a_folder_prove_it_and_draw_it(folder):
    rows = open_run(folder / "labels").predictions().to_table().to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(PHOTOGRAPHS)
    assert all(row["error"] is None and len(row["embedding"]) == 192 for row in rows)
    assert "<html" in (folder / "labels" / "report.html").read_text()[:2000]


def test_four_questions_are_answered(folder):
    said = shell(folder, "wordsworth: four of them")
    assert re.search(r"^label +images", said, re.MULTILINE)
    assert (folder / "unsure.jpg").stat().st_size and (folder / "alike.jpg").stat().st_size
    (image,) = (folder / "the-image").rglob("*.jpg")
    assert image.read_bytes() == (folder / "photos" / "cats" / "1.jpg").read_bytes()


def test_a_join_counts_every_image_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = BLOCKS["Python: the fifth, a join with a table of yours"].rstrip()
    names: dict = {}
    before, _, last = code.rpartition("\n")
    exec(before, names)
    assert sum(count for _, _, count in eval(last, names).fetchall()) == len(PHOTOGRAPHS)


def test_the_program_continues_the_run_of_the_command(folder):
    """One process of its own: a driver of Ray's."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS["Python: the same from a program"]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-3000:]
    assert open_run(folder / "labels").predictions().count_rows() == len(PHOTOGRAPHS)
