"""Hold that no folder of a user's project hides this package, and that a checkout needs no installation."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.support.builders import write_shards

ROOT = Path(__file__).parents[1]
NAMES = ("jobs", "pipeline", "vit_model")
HIDING = "raise ImportError('a folder of the user was imported in place of the package')\n"
# Labels as a Ray job does: the driver runs in the user's folder, which Ray brings to every worker.
JOB = """
import os, sys
import wordsworth
import wordsworth.pipeline  # sets the environment of Ray
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
import ray
ray.init(address="local", num_cpus=4, object_store_memory=200 << 20, log_to_driver=False,
         runtime_env={"working_dir": os.getcwd()})
run = wordsworth.label([sys.argv[1]], output=sys.argv[2], model=sys.argv[3])
print(run.predictions().count_rows())
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, shards=2, images=6)
    return folder


def users_folder(folder: Path) -> Path:
    """Make a project that has packages and a module of our folders' names."""
    for name in ("jobs", "vit_model"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(HIDING)
    (folder / "pipeline.py").write_text(HIDING)
    return folder


def label(python: str | Path, cwd: Path, shards: Path, out: Path, model: Path, **env: str) -> int:
    """Label in a process of its own and return the number of rows."""
    command = [python, "-m", "wordsworth", "label", shards, "--output", out, "--model", model]
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return ds.dataset(out / "predictions").count_rows()


@pytest.mark.long
@pytest.mark.ray
def test_a_projects_own_pipeline_jobs_and_vit_model_hide_nothing(tmp_path, shards, small_model):
    cwd = users_folder(tmp_path / "project")
    assert label(sys.executable, cwd, shards, tmp_path / "out", small_model, PYTHONPATH=".") == 12


@pytest.mark.long  # without a job: the test above
@pytest.mark.ray
def test_a_ray_jobs_working_directory_hides_nothing(tmp_path, shards, small_model):
    cwd = users_folder(tmp_path / "project")
    (cwd / "job.py").write_text(JOB)
    command = [sys.executable, "job.py", str(shards), str(tmp_path / "out"), str(small_model)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "12\n"


def copy_of_the_checkout(folder: Path) -> Path:
    for name in ("wordsworth", "recipes", *NAMES):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_a_checkout_without_installation_is_imported_from_its_own_folders(tmp_path):
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    code = (
        "import wordsworth.jobs, wordsworth.pipeline.errors, wordsworth.vit_model.config, sys\n"
        "for name, module in sys.modules.items():\n"
        "    if name.startswith('wordsworth.'): print(module.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    files = done.stdout.splitlines()
    assert len(files) >= 5 and all(Path(file).is_relative_to(checkout) for file in files)


def test_a_folder_beside_an_installation_is_not_taken_for_a_checkout(tmp_path):
    installed = tmp_path / "site-packages"
    shutil.copytree(ROOT / "wordsworth", installed / "wordsworth")
    users_folder(installed)
    code = "import wordsworth; print(len(wordsworth.__path__))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


@pytest.mark.ray
def test_the_wheel_labels_in_an_environment_of_its_own(tmp_path, shards, small_model):
    source = copy_of_the_checkout(tmp_path / "source")
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*build, "--wheel-dir", str(tmp_path / "wheels")], cwd=source, check=True, timeout=240)
    (wheel,) = (tmp_path / "wheels").glob("wordsworth-*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert "wordsworth/pipeline/report/templates/base.html.j2" in archive.namelist()
        recipes = {f"wordsworth/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
        assert recipes and recipes <= set(archive.namelist())
        archive.extractall(packages)
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wordsworth"}
    # The dependencies of this environment, without what its .pth files install: this package is the wheel's.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = venv / "bin" / "python"
    code = "import wordsworth.pipeline; print(wordsworth.pipeline.__file__)"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(packages)
    command = [str(python), "-m", "wordsworth", "pretrain", "nowhere", "--output", "x", "--config", "smoke"]
    done = subprocess.run([*command, "--workers", "none"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--workers none: give a number" in done.stderr, "the recipe was taken"
    assert label(python, tmp_path, shards, tmp_path / "out", small_model) == 12
