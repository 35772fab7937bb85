"""Hold that every file of deploy/ is read by somebody, and that its comments name commands that exist."""

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, ROOT
from tests.test_docs import COMMAND

FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
PAGES = "\n".join(
    (ROOT / "docs" / name).read_text()
    for name in ("cluster.md", "operations.md")
    if (ROOT / "docs" / name).exists()
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_on_a_page(path):
    assert str(path.relative_to(ROOT)) in PAGES


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix in (".yaml", ".yml")], ids=lambda path: path.name
)
def test_every_yaml_parses(path):
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_that_a_file_names_exists(path):
    commands = {one.stem for one in (ROOT / "jobs").glob("*.py")}
    assert set(COMMAND.findall(path.read_text())) <= commands
