"""Lay out what a job brings to the nodes: this package, and the files that its command names."""

import contextlib
import shutil
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wordsworth.pipeline.errors import UserError

ABOVE = Path(__file__).resolve().parents[2]  # the package's own folder, or the checkout that holds its parts
SUBPACKAGES = ("jobs", "pipeline", "vit_model", "recipes")
CARRIED_SUFFIXES = (".py", ".j2", ".css", ".js", ".toml")  # modules, the templates of pages, and recipes
LEFT_OUT = (".gitignore", ".rayignore")  # Ray would leave out what they name: a model's weights, for example
MAX_CARRIED = 100 << 20  # bytes of all files that a command names: Ray keeps them in the head's memory


def package_version() -> str:
    """Return the version of this package, also of a checkout that was never installed."""
    with contextlib.suppress(PackageNotFoundError):
        return version("wordsworth")
    project = ABOVE / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    return "unknown"  # modules without a name, as py_modules of a user's own brings them


def stage_package(folder: Path) -> list[Path]:
    """Copy the modules of this package into a folder, as an installation lays them out.

    A checkout's `pipeline/` becomes `wordsworth/pipeline/`, so a folder of that name in the user's working
    directory hides nothing. Tests, benchmarks and everything else of a checkout stay behind.

    Args:
        folder: an empty folder.

    Returns:
        The folders to give to Ray as `py_modules`: the package, and its name and version.
    """
    package = folder / "wordsworth"
    for source, target in _modules():
        target = package / target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    number = package_version()
    metadata = folder / f"wordsworth-{number}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: wordsworth\nVersion: {number}\n")
    return [package, metadata]


def _modules() -> Iterator[tuple[Path, Path]]:
    """Yield every module, template and recipe of this package, and its place in an installed package."""
    is_checkout = (ABOVE / "wordsworth" / "__init__.py").is_file()
    own = ABOVE / "wordsworth" if is_checkout else ABOVE
    for path in own.glob("*.py"):
        yield path, path.relative_to(own)
    for name in SUBPACKAGES:
        for path in (ABOVE / name).rglob("*"):
            if path.suffix in CARRIED_SUFFIXES:
                yield path, path.relative_to(ABOVE)


def carried_name(path: Path, taken: dict[str, Path]) -> str:
    """Return the name, relative to the job's working directory, of a file or folder that the job carries.

    A relative path stays what it is. Any other one gets its last part, in a folder `carried`.

    Args:
        path: as the command has it.
        taken: names that other paths of the command have; the new one is added.
    """
    if not path.is_absolute() and ".." not in path.parts:
        name = path.as_posix()
    else:
        name = f"carried/{path.name}"
        number = 1
        while taken.get(name, path) != path:
            number += 1
            name = f"carried/{number}/{path.name}"
    taken[name] = path
    return name


def stage_files(carried: dict[str, Path], folder: Path) -> None:
    """Copy the files and folders that a job carries into the folder that becomes its working directory.

    Raises:
        UserError: they are too large to go through the head of a cluster.
    """
    size = 0
    for name, path in carried.items():
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size += sum(file.stat().st_size for file in files)
        if size > MAX_CARRIED:
            raise UserError(
                f"{path} lies on this machine and is too large to travel with the job (more than "
                f"{MAX_CARRIED >> 20} MiB in all): copy it to a bucket, or to a folder that all nodes share"
            )
        for file in files:
            if file.name in LEFT_OUT:
                continue
            target = folder / name if path.is_file() else folder / name / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
