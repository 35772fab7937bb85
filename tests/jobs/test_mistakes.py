"""A hundred mistakes on the command line, and the line that each gets: what is wrong, where, and what to do.

mistakes.txt is the table. `{p}` is a folder that this file makes, `...` stands for any text.
"""

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.builders import photo, write_shards
from tests.support.runs import made_up_plan, whole_run
from wordsworth.jobs.cli import run
from wordsworth.jobs.commands import COMMANDS
from wordsworth.pipeline.output.run_folder import RunFolder

TABLE = Path(__file__).with_name("mistakes.txt")
CONFIGS = {
    "sections.toml": "[label]\ntop-k = 3\n",
    "sources.toml": 'sources = ["in/"]\nmodel = "S/16"\n',
    "typo.toml": 'modle = "S/16"\n',
    "wrong.toml": 'top-k = "three"\n',
    "unquoted.toml": "model = S/16\n",
    "bracket.yaml": "top-k: [1\n",
    "list.yaml": "- top-k\n- 3\n",
    "none.yaml": "model:\n",
    "debug.toml": "debug = true\n",
    "mean.toml": "mean = [0.5, 0.5]\n",
    "resume.toml": "resume = true\n",
}
BEFORE = re.compile(r" \.\.\.$|joining the Ray cluster at")  # lines that may stand before the last one
OF_THE_MACHINE = re.compile(r"AWS_|RAY_(ADDRESS|API)|WORDSWORTH_|HF_")  # variables that change a line


@dataclass
class Mistake:
    """Hold one row of the table.

    Attributes:
        name: what a person did.
        variables: environment variables that are set.
        command: what was typed.
        exit_code: of the command.
        line: what is said, the last line.
    """

    name: str
    command: str
    exit_code: int
    line: str
    variables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, block: str) -> "Mistake":
        """Return a row: its name, `$ [NAME=VALUE ...] wordsworth ...`, and the exit code with the line."""
        name, command, told = block.split("\n")
        before, _, command = command.removeprefix("  $ ").partition("wordsworth")
        code, line = told.split(maxsplit=1)
        variables = dict(part.split("=", 1) for part in before.split())
        return cls(name, command.strip(), int(code), line, variables)


MISTAKES = [Mistake.parse(block) for block in TABLE.read_text().strip().split("\n\n")]


def make_place(root: Path, model: Path) -> Path:
    """Make what the commands of the table name."""
    write_shards(root / "shards", shards=2, images=4)
    for number in range(3):
        for name in ("cat", "dog"):
            (root / "folders" / name).mkdir(parents=True, exist_ok=True)
            (root / "folders" / name / f"{number}.jpg").write_bytes(photo(number))
    for name in ("empty", "text", "two words"):
        (root / name).mkdir()
    (root / "text" / "a.txt").write_text("words")
    (root / "list.txt").write_text("nothing.tar\n")
    (root / "model").symlink_to(model)
    made = whole_run(root / "made")
    made.out.rename(root / "run")
    RunFolder(str(root / "begun")).create(made_up_plan({"source": [str(root / "shards")], "top-k": 5}))
    for name, text in CONFIGS.items():
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_model) -> Path:
    return make_place(tmp_path_factory.mktemp("mistakes"), small_model)


def told_by(mistake: Mistake, place: Path, capsys) -> tuple[int, list[str]]:
    """Return how a command ended, and what it said: on stderr, or where that is empty on stdout."""
    code = run(shlex.split(mistake.command.replace("{p}", str(place))))
    stdout, stderr = capsys.readouterr()
    return code, stderr.splitlines() or ["; ".join(stdout.splitlines())]


def test_the_table_has_a_hundred_mistakes_over_all_commands():
    assert len({mistake.command for mistake in MISTAKES}) == len({mistake.name for mistake in MISTAKES})
    assert len(MISTAKES) >= 100
    assert set(COMMANDS) <= {mistake.command.partition(" ")[0] for mistake in MISTAKES}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_gets_this_line(place, capsys, monkeypatch, mistake):
    for name in filter(OF_THE_MACHINE.match, list(os.environ)):
        monkeypatch.delenv(name)
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **mistake.variables}.items():
        monkeypatch.setenv(name, value.replace("{p}", str(place)))
    if "ray" in sys.modules:  # a Ray of other tests in this process would answer for the table's clusters
        monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    monkeypatch.chdir(place)
    names = sorted(path.name for path in place.iterdir())
    code, (*before, line) = told_by(mistake, place, capsys)
    line = re.sub(r"^(\d\d:\d\d:\d\d )?(wordsworth: )?", "", line)
    wanted = ".*".join(map(re.escape, mistake.line.replace("{p}", str(place)).split("...")))
    assert re.fullmatch(wanted, line), line
    assert code == mistake.exit_code
    assert all(map(BEFORE.search, before)), before
    assert sorted(path.name for path in place.iterdir()) == names, "a refused command leaves nothing behind"


def test_a_run_goes_on_under_every_name_of_its_source(place, tmp_path, local_ray, capsys):
    output = tmp_path / "two words"
    (tmp_path / "link").symlink_to(place / "shards")
    other = tmp_path / "other"
    shutil.copytree(place / "shards", other)
    command = ["-o", str(output), "-m", str(place / "model")]
    assert run(["label", str(place / "shards"), *command]) == 0
    printed = capsys.readouterr().out
    assert f"wordsworth verify '{output}' --source" in printed
    assert f"wordsworth report '{output}'" in printed
    names = ["{p}/shards/", "{p}//shards", "{p}/text/../shards", "file://{p}/shards", str(tmp_path / "link")]
    for name in names:
        assert run(["label", name.replace("{p}", str(place)), *command]) == 0
        assert "this run is complete already: nothing to do" in capsys.readouterr().err, name
    assert run(["label", str(other), *command]) == 1
    assert f"source was {place}/shards and is {other}. Choose a new --output" in capsys.readouterr().err


def test_class_folders_without_a_target_are_named(place, tmp_path, local_ray, capsys):
    assert run(["pretrain", str(place / "folders"), "-o", str(tmp_path / "o"), "--config", "smoke"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "has no class: --target cls gives None" in line and ": --target folder gives 'cat'" in line
