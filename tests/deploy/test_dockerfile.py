"""Hold deploy/Dockerfile against the tree that it copies and the lock that it installs."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, ROOT

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BIN = Path(sys.executable).parent


def commands(instruction: str) -> list[str]:
    """Return what stands behind an instruction, each on one line."""
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{instruction} ")]


def allowed() -> list[str]:
    return [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


def test_hadolint_finds_nothing():
    found = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_both_targets_run_as_a_user_who_is_not_root():
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)[::-1])
    assert [base for base, name in re.findall(r"^FROM (\S+) AS (cpu|cuda)$", DOCKERFILE, re.M)] == [
        "run",
        "run",
    ]
    assert stages
    assert commands("USER") == ["1000:0"]
    last = DOCKERFILE[DOCKERFILE.index("USER 1000:0") :]
    assert (
        "\nRUN " not in last
    )  # nothing happens as root afterwards, and nothing is downloaded in the last stages


def test_the_image_starts_no_open_cluster():
    assert any("RAY_AUTH_MODE=token" in line for line in commands("ENV"))


def test_what_is_copied_reaches_the_builder_and_nothing_else_does():
    copied = [name for line in commands("COPY") if "--from" not in line for name in line.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text()
    assert re.search(r"^\*$", ignored, re.MULTILINE)
    for name in copied:
        assert name == "." or name in allowed(), name
    assert all((ROOT / name).exists() for name in allowed())
    assert not {"tests", "benchmarks", ".git", "docs"} & set(allowed())


def test_everything_that_is_installed_has_a_hash_but_pytorch_for_cpus():
    installs = [part for line in commands("RUN") for part in line.split("&&") if "pip install" in part]
    setup, cuda, cpu, *own = installs
    assert "--require-hashes" in setup and "-r requirements-setup.lock" in setup
    assert "--require-hashes" in cuda and "-c requirements.lock" in cuda
    assert "-c others.lock" in cpu and "--no-verify-hashes" not in cpu
    assert all("--only-binary :all:" in one for one in (setup, cuda, cpu))
    assert len(own) == 2 and all("--no-deps --no-build-isolation" in one for one in own)


def test_every_extra_is_installed_that_a_run_or_a_training_needs():
    (extras,) = (re.findall(r"--extra (\w+)", line) for line in commands("ENV") if "EXTRAS" in line)
    known = PROJECT["project"]["optional-dependencies"]
    at_a_desk = {"dev", "plots", "sql"}  # what tests and people need who look at a run
    assert set(extras) == set(known) - at_a_desk


def test_the_lock_for_cpus_lacks_pytorch_and_cuda_alone(tmp_path):
    """Run the two commands of the build that divide the lock."""
    (line,) = [line for line in commands("RUN") if "others.lock" in line]
    divide = [part for part in line.split("&&") if "pip install" not in part]
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    subprocess.run(["bash", "-euc", "&&".join(divide)], cwd=tmp_path, check=True)
    names = re.compile(r"^([a-z0-9][\w.\[\],-]*)==", re.MULTILINE)
    before = set(names.findall((tmp_path / "requirements.lock").read_text()))
    after = (tmp_path / "others.lock").read_text()
    gone = before - set(names.findall(after))
    assert {"torch", "torchvision", "triton"} <= gone
    assert all(re.match(r"torch$|torchvision$|triton$|nvidia-|cuda-", name) for name in gone)
    assert after.count("--hash=sha256:") > 1000
    torch, vision = (tmp_path / "torch.txt").read_text().split()
    assert re.fullmatch(r"torch==[\d.]+", torch) and re.fullmatch(r"torchvision==[\d.]+", vision)


@pytest.mark.slow
def test_the_package_that_the_builder_sees_is_whole(tmp_path):
    """Install from what .dockerignore leaves, as the build does, and compare with the tree."""
    for name in allowed():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / "source").mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / "source" / name)
    (line,) = {line for line in commands("RUN") if "--no-build-isolation" in line}
    arguments = line.split()[1:]
    here = ["--python", sys.executable, "--target", str(tmp_path / "installed"), "--offline", "--quiet"]
    subprocess.run([BIN / "uv", *arguments[:2], *here, *arguments[2:]], cwd=tmp_path / "source", check=True)
    installed = {path.name for path in (tmp_path / "installed" / "wordsworth").rglob("*.py")}
    for top in ("jobs", "pipeline", "vit_model"):
        for path in (ROOT / top).rglob("*.py"):
            assert (tmp_path / "installed" / "wordsworth" / path.relative_to(ROOT)).exists(), path
    assert installed
    assert not fnmatch.filter(installed, "test_*.py")
