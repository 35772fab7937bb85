"""Hold that no version is installed that lacks a fix, and that a setup installs what the locks name alone."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = re.compile(r"^([\w.\[\],-]+)==([^ ;\\]+)", re.MULTILINE)


def fixes() -> dict[str, Version]:
    """Return the least version of every package that docs/security.md names."""
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.split("## Versions and the fix that each carries")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([\d.]+) \|", table, re.MULTILINE)
    return {name: Version(version) for name, version in rows}


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [Requirement(text) for group in (PROJECT["project"]["dependencies"], *extras) for text in group]


def floor_of(requirement: Requirement) -> Version:
    (floor,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return floor


def locked(name: str) -> list[tuple[str, Version]]:
    found = LOCKED.findall((ROOT / name).read_text())
    return [(canonicalize_name(package.split("[")[0]), Version(version)) for package, version in found]


def test_the_page_names_packages():
    assert {"pillow", "torch", "pyarrow", "ray", "aiohttp"} <= set(fixes())


@pytest.mark.parametrize("lock", LOCKS)
def test_no_locked_version_lacks_a_fix(lock):
    old = [
        f"{name} {version}" for name, version in locked(lock) if name in fixes() and version < fixes()[name]
    ]
    assert old == []


def test_every_package_with_a_fix_is_locked():
    assert set(fixes()) <= {name for name, _ in locked("requirements.lock")}


def test_no_floor_allows_a_version_that_lacks_a_fix():
    low = []
    for requirement in requirements():
        fix = fixes().get(canonicalize_name(requirement.name))
        if fix and floor_of(requirement) < fix:
            low.append(f"{requirement} allows less than {fix}")
    assert low == []


def test_every_locked_version_is_allowed_by_the_project():
    versions: dict[str, list[Version]] = {}
    for name, version in locked("requirements.lock"):
        versions.setdefault(name, []).append(version)
    for requirement in requirements():
        for version in versions[canonicalize_name(requirement.name)]:
            assert version in requirement.specifier, requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_every_version_in_a_lock_has_hashes(lock):
    text = (ROOT / lock).read_text()
    assert LOCKED.search(text)
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    assert [block.splitlines()[0] for block in blocks if block and "--hash=sha256:" not in block] == []


def test_a_setup_installs_nothing_that_has_no_hash():
    """Every command of the Makefile that installs takes a lock with hashes, or this project without more."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 4
    for line in installs:
        alone = "--no-deps --no-build-isolation -e ." in line
        assert alone or ("$(LOCKED)" in line and ".lock" in line), line
    assert any(line.startswith("LOCKED := --require-hashes --only-binary :all:") for line in lines)
