"""Hold that a release can be built and installed: sdist and wheel, on each Python that is here."""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest

import wordsworth

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UV = Path(sys.executable).with_name("uv")
INSTALL = (UV, "pip", "install", "--quiet")
PYTHONS = ("3.11", "3.12", "3.13")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
# What an installation without its dependencies can do: these modules import none of them.
LIGHT = "import wordsworth; from wordsworth.vit_model import ViTConfig; print(wordsworth.__version__)"


class Release(NamedTuple):
    """Hold the files of a release: the sdist, the wheel made of it, and the wheel made of the tree."""

    sdist: Path
    wheel: Path
    of_tree: Path


def run(*command: str | Path, cwd: Path, timeout: float = 240, **env: str) -> str:
    """Run a command that must succeed, without the paths of this process, and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    """Build from what git would have, and from nothing else of this folder."""
    folder = tmp_path_factory.mktemp("release")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # and is not deleted, or a link to a folder
            place = folder / "tree" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((ROOT / name).read_bytes())
    build = [UV, "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]
    run(*build, "--out-dir", folder / "dist", cwd=folder / "tree")  # the sdist, and the wheel of the sdist
    run(*build, "--wheel", "--out-dir", folder / "of-tree", cwd=folder / "tree")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    (of_tree,) = (folder / "of-tree").glob("*.whl")
    return Release(sdist, wheel, of_tree)


def contents(wheel: Path) -> dict[str, str]:
    """Return the digest of each file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_tree(release):
    assert contents(release.wheel) == contents(release.of_tree)
    assert release.wheel.name == f"wordsworth-{PROJECT['version']}-py3-none-any.whl"


def test_a_release_has_every_module_and_nothing_else_of_the_tree(release):
    found = {name for name in contents(release.wheel) if ".dist-info/" not in name}
    expected = {f"wordsworth/{path.name}" for path in (ROOT / "wordsworth").glob("*.py")}
    for top in ("jobs", "pipeline", "vit_model"):
        expected |= {f"wordsworth/{path.relative_to(ROOT)}" for path in (ROOT / top).rglob("*.py")}
    expected |= {f"wordsworth/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    assert expected <= found and {"wordsworth/jobs/digits.npz", "wordsworth/jobs/digits.md"} <= found
    assert not [name for name in found if re.search(r"(^|/)(tests|benchmarks|__pycache__)/", name)]
    with tarfile.open(release.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "jobs/digits.npz", "jobs/digits.md"} <= names


def test_what_a_release_says_of_itself(release):
    told = metadata(release.wheel)
    assert told["Version"] == PROJECT["version"] == wordsworth.__version__
    assert told["License-Expression"] == "Apache-2.0" and told["License-File"] == "LICENSE"
    classified = [
        line.rpartition(" ")[2] for line in told.get_all("Classifier") if re.search(r":: 3\.\d", line)
    ]
    assert tuple(classified) == PYTHONS and told["Requires-Python"] == "<3.14,>=3.11"
    assert set(told.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_version_stands_in_one_place_and_the_changelog_knows_it():
    numbers = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert numbers[0] == PROJECT["version"]
    for path in [*(ROOT / "wordsworth").glob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        assert not re.search(r"__version__ *=", path.read_text()), path


# ---- installed --------------------------------------------------------------------------------------------


def interpreter(version: str) -> Path | None:
    """Return a Python that uv finds: on the path, of its own, or one of pyenv's."""
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders = [str(folder / "bin") for folder in sorted(of_pyenv.glob(f"{version}.*"))]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    command = [UV, "python", "find", "--no-project", "--system", "--no-python-downloads", version]
    env = {**os.environ, "PATH": path}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else None


FOUND = {version: python for version in PYTHONS if (python := interpreter(version))}


def environment(folder: Path, python: Path) -> Path:
    """Make an empty environment and return its Python."""
    run(UV, "venv", "--quiet", "--python", python, folder, cwd=folder.parent)
    return folder / "bin" / "python"


def test_the_python_of_these_tests_is_among_those_that_are_tried():
    assert HERE in FOUND or HERE not in PYTHONS


@pytest.mark.parametrize("version", FOUND)
def test_the_wheel_installs_in_an_empty_environment(version, release, tmp_path):
    python = environment(tmp_path / "venv", FOUND[version])
    whole = ["--offline", "--no-deps", "--compile-bytecode"]  # compiled: every file is of this Python
    run(*INSTALL, *whole, "--python", python, release.wheel, cwd=tmp_path)
    assert run(python, "-c", LIGHT, cwd=tmp_path) == f"{PROJECT['version']}\n"
    assert (tmp_path / "venv" / "bin" / "wordsworth").is_file()


@pytest.mark.server
def test_the_installed_command_works_with_the_dependencies(release, tmp_path):
    python = environment(tmp_path / "venv", Path(sys.executable))
    run(
        UV,
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        python,
        release.wheel,
        cwd=tmp_path,
    )
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = tmp_path / "venv" / "bin" / "wordsworth"
    assert run(command, "--version", cwd=tmp_path).startswith(f"wordsworth {PROJECT['version']}\n")
    code = "import wordsworth.vit_model as v; print(v.__file__, v.VisionTransformer.__name__)"
    file, name = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(packages) and name == "VisionTransformer"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", FOUND)
def test_the_wheel_brings_what_it_needs_and_labels(version, release, tmp_path, small_model):
    """Install with all dependencies, from the registry: gigabytes, unless they are in uv's cache."""
    from tests.support.builders import write_shards

    python = environment(tmp_path / "venv", FOUND[version])
    run(*INSTALL, "--python", python, release.wheel, cwd=tmp_path, timeout=3000)
    command = tmp_path / "venv" / "bin" / "wordsworth"
    assert run(command, "--version", cwd=tmp_path).startswith(
        f"wordsworth {PROJECT['version']}\nPython {version}"
    )
    write_shards(tmp_path / "shards", shards=1, images=4)
    label = ["label", "shards", "--output", "out", "--model", small_model]
    run(command, *label, cwd=tmp_path, timeout=600)
    assert "4 rows" in run(command, "verify", "out", "--source", cwd=tmp_path)
