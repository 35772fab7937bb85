"""submit: a command is checked here, before a cluster gets it."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from wordsworth.jobs.submitted_command import checked_command
from wordsworth.pipeline.cluster import package
from wordsworth.pipeline.cluster.submission import Submission
from wordsworth.pipeline.errors import UserError

LABEL = ["label", "s3://photos/in", "--output", "s3://photos/out", "--model", "S/16"]

# Names that a bucket really has, and that a shell would change.
ODD_NAMES = [
    "a key with  two spaces",
    "it's",
    'say "cheese"',
    "$HOME",
    "`id`",
    "$(id)",
    "a;b&c|d>e",
    "back\\slash",
    "new\nline",
    "-*?[x]{a,b}~#!%",
    "Zürich 東京",
    "--",
]


def refused(*tokens: str) -> UserError:
    with pytest.raises(UserError) as error:
        checked_command(list(tokens))
    assert "\n" not in str(error.value)
    return error.value


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Give the test a folder of its own as the place where the user types."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_command_is_sent_as_it_was_typed():
    command = checked_command(["wordsworth", *LABEL, "--grace", "45"])
    assert command.tokens == [*LABEL, "--grace", "45"]
    assert (command.name, command.output, command.grace) == ("label", "s3://photos/out", 45.0)
    assert command.places == ["s3://photos/in", "s3://photos/out"]
    assert command.notes == []


TRAIN = ["pretrain", "s3://photos/in", "--output", "s3://photos/model", "--variant", "Ti/16"]


@pytest.mark.parametrize("command", [LABEL, TRAIN])
@pytest.mark.parametrize(
    ("given", "seconds"), [([], 30.0), (["--wait-timeout", "9"], 30.0), (["--grace", "0"], 0.0)]
)
def test_a_job_that_is_stopped_has_the_grace_of_its_command(command, given, seconds):
    """Where the line has none, that is the command's own."""
    assert checked_command([*command, *given]).grace == seconds


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "behind --"),
        (["--follow"], "behind --"),
        (["lable", "a"], "there is no command 'lable': did you mean label?"),
        (["label", "s3://a", "--output", "s3://b"], "--model"),
        ([*LABEL, "--modle", "x"], "has no option --modle: did you mean --model?"),
        ([*LABEL, "--top-k", "five"], "top-k"),
        ([" ".join(LABEL)], "leave out the quotes"),
        (["wordsworth " + " ".join(LABEL)], "leave out the quotes"),
        (["python", "-m", "wordsworth", *LABEL], "leave out python -m wordsworth"),
        ([*LABEL, "&&", "echo", "done"], "has no place for"),
        (["label", "--help"], "wordsworth label --help without submit"),
        (["models"], "runs on this machine"),
        (["demo"], "runs on this machine"),
        (["submit", "--", *LABEL], "runs on this machine"),
        ([*LABEL, "--labels", "na\udcffmes.txt"], "no UTF-8"),
        (["label", *["s3://photos/a.tar"] * 9000, *LABEL[2:]], "@list.txt"),
        ([*LABEL, "--address", "10.0.0.1:6379"], "before --"),
    ],
)
def test_what_the_command_itself_would_refuse_is_refused_here(tokens, says):
    error = refused(*tokens)
    assert error.exit_code == 2
    assert says in str(error)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_character_of_a_name_arrives_at_the_command(name):
    submission = Submission(tokens=("label", f"s3://photos/{name}", name), place="x", python="PYTHON")
    program = f"{sys.executable} -c 'import sys; print(ascii(sys.argv[1:]))'"
    line = submission.entrypoint.replace("PYTHON", program, 1)
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    assert said.strip() == ascii(["-m", "wordsworth", "label", f"s3://photos/{name}", name])


@pytest.mark.parametrize("place", ["photos", "./photos", "photos/*.tar", "file:photos"])
def test_a_relative_path_is_refused_because_the_job_runs_elsewhere(place):
    assert "this machine" in str(refused("label", place, *LABEL[2:]))
    assert "this machine" in str(refused("label", LABEL[1], "--output", place, "--model", "S/16"))


def test_an_absolute_path_is_said_to_be_the_nodes():
    command = checked_command(["label", "/data/photos", "--output", "/data/out", "--model", "S/16"])
    assert command.notes == ["on the cluster's nodes, not on this machine: /data/photos, /data/out"]


@pytest.mark.parametrize(
    "options",
    [
        '{"key": "AKID", "secret": "THESECRET"}',
        '{"s3://photos": {"secret": "THESECRET"}}',
        '{"client_kwargs": {"aws_secret_access_key": "THESECRET"}}',
        '{"client_kwargs": {"aws_session_token": "THESECRET"}}',
        '{"account_key": "THESECRET"}',
        '{"connection_string": "THESECRET"}',
        '{"sas_token": "THESECRET"}',
        '{"token": {"private_key": "THESECRET"}}',
    ],
)
def test_a_key_in_storage_options_is_refused_and_not_repeated(options):
    error = str(refused(*LABEL, "--storage-options", options))
    assert "--env-file" in error
    assert "THESECRET" not in error


@pytest.mark.parametrize(
    "options", ["{}", '{"anon": true}', '{"token": "anon"}', '{"endpoint_url": "http://store:9000"}', "{no"]
)
def test_options_without_a_secret_travel(options):
    assert checked_command([*LABEL, "--storage-options", options]).tokens[-1] == options


@pytest.mark.parametrize(
    "place",
    [
        "s3://AKID:THESECRET@photos/in",
        "https://host/a.tar?X-Amz-Signature=THESECRET",
        "https://me:THESECRET@host/a.tar",
    ],
)
def test_an_address_that_gives_access_is_refused(place):
    error = str(refused("label", place, *LABEL[2:], "--allow-http"))
    assert "THESECRET" not in error


def test_the_value_of_a_secret_variable_is_refused_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "THESECRET/of/mine")
    error = str(refused(*LABEL, "--prompt", "THESECRET/of/mine {}"))
    assert "AWS_SECRET_ACCESS_KEY" in error
    assert "THESECRET" not in error


def test_files_that_the_command_names_travel_under_their_names(here):
    (here / "lists").mkdir()
    (here / "lists" / "shards.txt").write_text("s3://photos/a.tar\n")
    (here / "names.txt").write_text("cat\ndog\n")
    (here / "mine").mkdir()
    (here / "mine" / "model.safetensors").write_bytes(b"0")
    (here / "mine" / ".gitignore").write_text("*.safetensors\n")
    tokens = ["label", "@lists/shards.txt", "--output", "s3://out", "--model", "mine", "--labels=names.txt"]
    command = checked_command(tokens)
    assert command.tokens == tokens
    assert sorted(command.carried) == ["lists/shards.txt", "mine", "names.txt"]
    assert command.notes == ["these files travel with the job: mine, names.txt, lists/shards.txt"]
    folder = here / "staged"
    package.stage_files(command.carried, folder)
    staged = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert staged == ["lists/shards.txt", "mine/model.safetensors", "names.txt"]


def test_files_of_other_folders_get_a_name_in_the_job(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "names.txt").write_text("cat\n")
    (elsewhere / "prompts").mkdir()
    (elsewhere / "prompts" / "names.txt").write_text("a {}\n")
    asked = [f"--labels={elsewhere}/names.txt", "--prompt", f"@{elsewhere}/prompts/names.txt"]
    command = checked_command([*LABEL, *asked])
    assert command.tokens == [*LABEL, "--labels=carried/names.txt", "--prompt", "@carried/2/names.txt"]
    assert command.carried["carried/2/names.txt"].read_text() == "a {}\n"


def test_options_of_a_config_file_are_checked_and_the_file_travels(here):
    config = here / "run.toml"
    config.write_text('output = "s3://photos/out"\nmodel = "S/16"\ntop_k = 3\n')
    command = checked_command(["label", "s3://photos/in", "--config", "run.toml"])
    assert command.tokens == ["label", "s3://photos/in", "--config", "run.toml"]
    assert command.output == "s3://photos/out"
    assert list(command.carried) == ["run.toml"]
    config.write_text('output = "out"\nmodel = "S/16"\n')
    assert "this machine" in str(refused("label", "s3://photos/in", "--config", "run.toml"))
    config.write_text('output = "s3://o"\nmodel = "S/16"\nstorage_options = \'{"secret": "THESECRET"}\'\n')
    error = str(refused("label", "s3://photos/in", "--config", "run.toml"))
    assert "--env-file" in error and "THESECRET" not in error


def test_a_config_file_that_only_the_nodes_have_is_named_and_not_read(here):
    command = checked_command(["label", "s3://photos/in", "--config", "/etc/wordsworth/run.toml"])
    assert command.tokens[-1] == "/etc/wordsworth/run.toml"
    assert command.carried == {}


def test_a_file_that_is_nowhere_is_refused(here):
    assert "no such file" in str(refused(*LABEL, "--labels", "names.txt"))
    assert "no such file" in str(refused("label", "@shards.txt", *LABEL[2:]))


def test_a_large_file_travels_from_nowhere(here, monkeypatch, tmp_path_factory):
    monkeypatch.setattr("wordsworth.jobs.submitted_command.MAX_CARRIED", 3)
    monkeypatch.setattr(package, "MAX_CARRIED", 3)
    large = tmp_path_factory.mktemp("shared") / "weights.safetensors"
    large.write_bytes(b"1234")
    command = checked_command([*LABEL, "--weights", str(large)])
    assert command.carried == {}
    assert "must lie on the nodes" in command.notes[0]
    (here / "weights.safetensors").write_bytes(b"1234")
    command = checked_command([*LABEL, "--weights", "weights.safetensors"])
    with pytest.raises(UserError, match="too large to travel"):
        package.stage_files(command.carried, here / "staged")


def test_the_package_that_travels_is_whole_and_nothing_else(tmp_path):
    staged = package.stage_package(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "wordsworth/pipeline/labeling/labeler.py" in names
    assert "wordsworth/vit_model/foreign/load.py" in names
    assert "wordsworth/pipeline/report/templates/base.html.j2" in names
    assert not [name for name in names if "test" in name or "__pycache__" in name or ".git" in name]
    assert [path.name for path in staged] == [
        "wordsworth",
        f"wordsworth-{package.package_version()}.dist-info",
    ]


def test_a_checkout_that_was_never_installed_knows_its_version(monkeypatch, tmp_path):
    installed = package.package_version()

    def missing(name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(package, "version", missing)
    assert package.package_version() == installed
    monkeypatch.setattr(package, "ABOVE", tmp_path)
    assert package.package_version() == "unknown"


@pytest.mark.slow
def test_folders_of_the_users_own_hide_nothing_of_the_package(tmp_path):
    for name in ("pipeline", "jobs", "vit_model"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "package").mkdir()
    package.stage_package(tmp_path / "package")
    code = "import wordsworth.pipeline.labeling.plan as m; print(m.__file__, m.package_version())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "mine",
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'mine'}:{tmp_path / 'package'}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [
        str(tmp_path / "package/wordsworth/pipeline/labeling/plan.py"),
        package.package_version(),
    ], done.stderr
