"""Check that what the documentation names exists: files, modules, tests, commands and options."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "SECURITY.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
SOURCES = ("pipeline", "vit_model", "jobs", "wordsworth", "benchmarks", "tests")
PATH = re.compile(rf"\b(?:{'|'.join(SOURCES)}|recipes|docs|deploy)/[\w/.-]*\w\b/?")
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\((?!\w+://)([^)#]*)(?:#[^)]*)?\)")  # to a file of this repository
TEST = re.compile(r"\btest_\w+")
TEST_AND_PHRASE = re.compile(r"\b(test_\w+)(?: \(long\))?: ([^;|(]+)")
COMMAND = re.compile(r"\bwordsworth ([a-z]+)\b")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")
CSV = re.compile(r"(?<![\w/.*-])(\w+\.csv)\b")
# Options that the command line library adds, or that belong to other programs.
FOREIGN_OPTIONS = {
    *("help", "logdir", "working-dir", "require-hashes", "only-binary"),
    *(
        "target",
        "build-arg",
        "from-env-file",
        "selector",
        "generate",
        "port-forward",
        "nodes",
        "gpus-per-node",
        "runtime-env-json",
        "cpus",
        "num-gpus",
        "labels",
        "metrics-export-port",
    ),
}
LATER_FILES = {
    "gpu.csv",  # made by the first measurement on a GPU
    "metadata.csv",  # of a user
    "rows.csv",  # that a reader writes
    "selected_tags.csv",  # of a tagger
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


@cache
def source_files() -> tuple[Path, ...]:
    return tuple(path for top in SOURCES for path in sorted((ROOT / top).rglob("*.py")))


@cache
def words_of(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", path.read_text()))


def files_named(stem: str) -> list[Path]:
    """Return our files and packages of that name, without the tests."""
    found = []
    for path in source_files():
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if name == stem and path.relative_to(ROOT).parts[0] != "tests":
            found.append(path)
    return found


@cache
def functions_of_tests() -> dict[str, list[str]]:
    """Return the names of the test functions by test file, as in {"test_decode": ["test_a_cut_image"]}."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names = found.setdefault(path.stem, [])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names.append(node.name)
    return found


def missing_paths(text: str) -> Iterator[str]:
    for match in PATH.finditer(text):
        if not (ROOT / match.group()).exists():
            yield match.group()


def broken_links(text: str, folder: Path) -> Iterator[str]:
    for link in LINK.findall(text):
        if not (folder / link).exists():
            yield link


def missing_names(text: str) -> Iterator[str]:
    """Yield `module.name` where the module is ours and does not contain the name."""
    for code in CODE.findall(text):
        parts = re.fullmatch(r"(?:(?:\w+/)*)(\w+)\.(\w+)(?:\.(\w+))?(?:\(\))?", code)
        if not parts or parts[2] in {"py", "csv", "toml", "md", "json", "txt", "yaml", "sbatch"}:
            continue
        files = files_named(parts[1])
        names = {name for name in parts.groups()[1:] if name}
        if files and not any(names <= words_of(path) for path in files):
            yield code


def missing_files(text: str) -> Iterator[str]:
    """Yield `name.py` and `name.csv` that are nowhere in the tree."""
    for code in CODE.findall(text):
        if re.fullmatch(r"\w+\.py", code) and not any(path.name == code for path in source_files()):
            yield code
    for name in CSV.findall(text):
        if name not in LATER_FILES and not (ROOT / "benchmarks" / name).exists():
            yield name


def missing_options(text: str) -> Iterator[str]:
    given: set[str] = set(FOREIGN_OPTIONS)
    for path in source_files():
        if path.relative_to(ROOT).parts[0] in ("jobs", "benchmarks"):
            given.update(words_of(path))
    for option in OPTION.findall(text):
        name = option.replace("-", "_").removeprefix("no_")  # --no-follow is --follow
        if name not in given and option not in given:
            yield f"--{option}"


def missing_tests(text: str) -> Iterator[str]:
    functions = functions_of_tests()
    for name in TEST.findall(text):
        if name not in functions:
            yield name
    for file, phrases in TEST_AND_PHRASE.findall(text):
        for phrase in phrases.split(", "):
            words = re.sub(r"\W+", "_", phrase.strip().lower())
            is_file = words.split("_")[0] == "test"
            if file in functions and not is_file and not any(words in test for test in functions[file]):
                yield f"{file}: {phrase.strip()}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str):
    text = text_of(page)
    assert list(missing_paths(text)) == []
    assert list(missing_names(text)) == []
    assert list(missing_files(text)) == []
    assert list(missing_options(text)) == []


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_of_a_page_leads_somewhere(page: str):
    assert list(broken_links(text_of(page), (ROOT / page).parent)) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str):
    assert list(missing_tests(text_of(page))) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_exists(page: str):
    commands = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert {name for name in COMMAND.findall(text_of(page)) if name not in commands} == set()


def test_every_part_of_a_test_name_in_the_audit_belongs_to_a_test():
    """Check docs/gpu.md, which names a test by a part of its name, in backticks behind "test:"."""
    every_name = [name for names in functions_of_tests().values() for name in names]
    missing = []
    for line in text_of("docs/gpu.md").splitlines():
        for column in re.findall(r"test: ([^|;]+)", line):
            for part in CODE.findall(column):
                if re.fullmatch(r"\w+_\w+", part) and not any(part in name for name in every_name):
                    missing.append(part)
    assert missing == []


def test_a_name_that_is_gone_would_be_seen():
    text = (
        "[here](gone.md#part), [there](docs/architecture.md), `pipeline/loops.py`, `resources.NoSuchName`, "
        "`loops.py`, old.csv, --no-such-option, test_gone, test_docs: a promise that nobody made"
    )
    assert list(broken_links(text, ROOT)) == ["gone.md"]
    assert list(missing_paths(text)) == ["pipeline/loops.py"]
    assert list(missing_names(text)) == ["resources.NoSuchName"]
    assert list(missing_files(text)) == ["loops.py", "old.csv"]
    assert list(missing_options(text)) == ["--no-such-option"]
    assert list(missing_tests(text)) == ["test_gone", "test_docs: a promise that nobody made"]
