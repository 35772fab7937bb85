"""The commands on real stores: what a store refuses is one line that says what, where and what to do, before
anything heavy is loaded; what it allows works from and to every store."""

import json
import os
import re
import subprocess
import sys

import pytest
from fsspec.registry import _registry

from tests.faults import servers
from tests.faults.servers import BUCKET, KEY, SECRET, azure_options, served
from tests.support.builders import photo, write_shards
from wordsworth.jobs.cli import run
from wordsworth.pipeline.storage import google_credentials, preflight
from wordsworth.pipeline.storage.filesystem import open_filesystem

pytestmark = [pytest.mark.server, pytest.mark.slow]

READER, FETCHER = "AKREADER", "AKFETCHER"  # a user who may not write, and one who may not list either
PUBLIC = "public"  # a bucket that everybody may read
LINE = re.compile(r"wordsworth: \S.*: \S.*\n")  # what, where or why: what to do
# Commands of which each names a store, with {p} in its place.
COMMANDS = {
    "label": "label {p}/x --output out --model Ti/16",
    "label to": "label x --output {p}/out --model Ti/16",
    "label with": "label x --output out --model {p}/model",
    "embed": "embed {p}/x --output out --model Ti/16",
    "plan": "plan {p}/x --model Ti/16",
    "verify": "verify {p}/run",
    "compact": "compact {p}/run --output out",
    "show": "show {p}/run",
    "show to": "show run --output {p}/sheet.png",
    "report": "report {p}/run",
    "report to": "report run --output {p}/report.html",
    "diff": "diff {p}/run {p}/large",
    "diff to": "diff run large --output {p}/diff.html",
    "compact to": "compact run --output {p}/out",
    "lint": "lint {p}/x",
    "pack": "pack {p}/x --output out",
    "pack to": "pack x --output {p}/out",
    "pretrain": "pretrain {p}/x --output out --variant Ti/16",
    "pretrain to": "pretrain x --output {p}/out --variant Ti/16",
    "finetune": "finetune {p}/x --output out --model {p}/model",
    "evaluate": "evaluate {p}/x --model Ti/16",
    "explain": "explain {p}/x.jpg --output out --model Ti/16",
    "explain with": "explain x.jpg --output out --model {p}/model",
    "explain to": "explain x.jpg --output {p}/out --model Ti/16",
    "convert": "convert {p}/model --output out",
    "convert to": "convert Ti/16 --output {p}/out --format timm",
}
EVERY_COMMAND = """
import json, sys
from wordsworth.jobs.cli import run
for words in json.load(sys.stdin):
    print(words[0], run(words), file=sys.stderr)
heavy = {"torch", "ray", "timm"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def place(ceph, small_model, tmp_path_factory):
    """Shards, class folders and a model in a bucket of Ceph, which some users may use in part."""
    local = tmp_path_factory.mktemp("stores")
    write_shards(local / "shards", shards=2, images=3)
    for name in ("cat", "dog"):
        (local / "classes" / name).mkdir(parents=True)
        for number in range(3):
            (local / "classes" / name / f"{number}.jpg").write_bytes(photo(number))
    for user in (READER, FETCHER):
        ceph.ceph.add_user(user, SECRET)
    fs, root = open_filesystem(f"{ceph.root}/commands", ceph.options)
    fs.mkdir(f"/{PUBLIC}")
    for folder in (f"{root}/", f"{PUBLIC}/"):
        fs.put(f"{local}/", folder, recursive=True)
        fs.put(f"{small_model}/", f"{folder}model/", recursive=True)
    _allow(fs, BUCKET, {READER: ["s3:ListBucket", "s3:GetObject"], FETCHER: ["s3:GetObject"]})
    _allow(fs, PUBLIC, {"*": ["s3:ListBucket", "s3:GetObject"]})
    return f"{ceph.root}/commands"


def _allow(fs, bucket: str, actions: dict[str, list[str]]) -> None:
    """Let users do something in a bucket, by their keys; "*" is everybody."""
    arn = f"arn:aws:s3:::{bucket}"
    statements = [
        {
            "Effect": "Allow",
            "Principal": {"AWS": [user if user == "*" else f"arn:aws:iam:::user/user-{user.lower()}"]},
            "Action": allowed,
            "Resource": [arn, f"{arn}/*"],
        }
        for user, allowed in actions.items()
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    fs.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))


@pytest.fixture
def ask(ceph, capsys):
    """Run a command with the options of Ceph, some of them changed; return its exit code and its output."""

    def ask(*arguments: str, given: dict | str | None = None, **changed):
        options = {name: value for name, value in (ceph.options | changed).items() if value is not None}
        told = given if isinstance(given, str) else json.dumps(options if given is None else given)
        capsys.readouterr()
        code = run([*arguments, "--storage-options", told])
        return code, "".join(capsys.readouterr())

    return ask


REFUSALS = {
    "wrong secret": ({"secret": "other"}, "the credentials are wrong (SignatureDoesNotMatch"),
    "unknown key": ({"key": "NOBODY"}, "the store does not know the access key (InvalidAccessKeyId"),
    "no credentials": ({"key": None, "secret": None}, """'{"anon": true}'"""),
    "half of the credentials": ({"secret": None}, "credentials"),
    "nobody listens": ({"endpoint_url": "http://127.0.0.1:1"}, "Connection refused"),
    "no such host": ({"endpoint_url": "http://nowhere.invalid"}, "no answer from nowhere.invalid:80"),
    "endpoint without a scheme": ({"endpoint_url": "127.0.0.1:1"}, "begin it with https:// or http://"),
    "endpoint with a port that is none": (
        {"endpoint_url": "http://127.0.0.1:99999"},
        "check its host and port",
    ),
    "endpoint that is no text": ({"endpoint_url": 1}, "cannot use one of the --storage-options"),
    "setting of the client that is none": ({"client_kwargs": {"nope": 1}}, "'nope'): check the values"),
    "settings that are no object": ({"client_kwargs": 1}, "cannot use one of the --storage-options"),
    "unknown profile": ({"profile": "nobody"}, "check AWS_PROFILE"),
}

UNANSWERED = ("nobody listens", "no such host")


@pytest.mark.parametrize("case", REFUSALS)
def test_a_store_that_cannot_be_used_is_one_line_with_its_place_and_what_to_do(place, ask, monkeypatch, case):
    # On a busy machine the store's own answer, which names the reason, may take long.
    monkeypatch.setattr(preflight, "PATIENCE_S", 1.0 if case in UNANSWERED else 60.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    changed, told = REFUSALS[case]
    code, output = ask("lint", f"{place}/shards", **changed)
    assert code == 1 and told in output
    assert LINE.fullmatch(output) and f"cannot use {place}/shards: " in output


def test_tls_to_a_server_without_tls_is_told(place, ask, ceph):
    code, output = ask("lint", f"{place}/shards", endpoint_url=f"https://127.0.0.1:{ceph.port}")
    assert code == 1 and "no secure connection" in output and LINE.fullmatch(output)


def test_an_option_that_is_no_json_or_that_the_client_does_not_know_is_wrong_usage(place, ask):
    source = f"{place}/shards"
    code, output = ask("lint", source, given="{key: 1}")
    assert code == 2 and "--storage-options is no JSON" in output and LINE.fullmatch(output)
    code, output = ask("lint", source, endpoit_url="http://127.0.0.1")
    assert code == 2 and "knows no option endpoit_url: did you mean endpoint_url?" in output
    code, output = ask("lint", source, nonsense=1)
    assert code == 2 and "knows no option nonsense" in output and LINE.fullmatch(output)
    code, output = ask("lint", "gs://bucket/x", given={"tokn": "anon"})
    assert code == 2 and "did you mean token?" in output
    code, output = ask("lint", source, given={f"s3://{BUCKET}/deep": {}})
    assert code == 2 and "must be a bucket without a path" in output


def test_every_command_says_that_a_bucket_is_missing_before_torch_or_ray_are_loaded(ceph, tmp_path):
    lines = [
        [*words.format(p="s3://no-such-bucket").split(), "--storage-options", json.dumps(ceph.options)]
        for words in COMMANDS.values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", EVERY_COMMAND],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[1::2] == [f"{words.split()[0]} 1" for words in COMMANDS.values()]
    for line in told[::2]:
        assert line.startswith("wordsworth: cannot use s3://no-such-bucket/") and "does not exist" in line


def test_the_command_itself_ends_within_seconds(place, ceph, wordsworth, tmp_path):
    options = json.dumps(ceph.options | {"secret": "other"})
    done = wordsworth(
        *("label", f"{place}/shards", "--output", tmp_path / "out", "--model", f"{place}/model"),
        *("--storage-options", options),
        timeout=30,  # seconds; an idle machine takes three
    )
    assert done.returncode == 1 and LINE.fullmatch(done.stderr) and not done.stdout


def test_who_may_read_alone_reads_and_is_told_what_may_not_be_written(place, ask, tmp_path):
    reader = {"key": READER}
    assert ask("lint", f"{place}/shards", **reader)[0] == 0
    for words in ("pack {p}/classes --output {p}/new", "convert {p}/model --output {p}/new --format timm"):
        code, output = ask(*words.format(p=place).split(), **reader)
        assert code == 1 and f"{place}/new" in output and "permission denied (AccessDenied" in output
        assert output.count("\n") == 1


def test_who_may_not_list_reads_what_has_a_name(place, ask, tmp_path):
    fetcher = {"key": FETCHER}
    assert ask("lint", f"{place}/shards/part-000.tar", **fetcher)[0] == 0
    assert "in 2 shards" in ask("lint", place + "/shards/part-{000..001}.tar", **fetcher)[1]
    for source in (f"{place}/shards", f"{place}/shards/*.tar"):
        code, output = ask("lint", source, **fetcher)
        assert code == 1 and f"{place}/shards" in output and "permission denied" in output
        assert LINE.fullmatch(output)
    code, output = ask("verify", f"{place}/run", **fetcher)
    assert code == 1 and f"cannot use {place}/run: permission denied" in output


def test_a_public_bucket_needs_no_credentials_and_another_one_may_have_its_own(place, ask, ceph, tmp_path):
    nobody = {"anon": True, "endpoint_url": ceph.options["endpoint_url"]}
    assert ask("lint", f"s3://{PUBLIC}/shards", given=nobody)[0] == 0
    code, output = ask("lint", f"{place}/shards", given=nobody)
    assert code == 1 and "permission denied" in output
    both = {f"s3://{PUBLIC}": nobody, f"s3://{BUCKET}": ceph.options}
    words = ("pack", f"s3://{PUBLIC}/classes", "--output", f"{place}/packed-from-public")
    code, output = ask(*words, given=both)
    assert code == 0 and "packed 6 images of 2 classes" in output


CHAINS = {
    "keys": {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": "{url}"},
    "an endpoint for s3": {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL_S3": "{url}",
    },
    "a file of credentials": {"AWS_SHARED_CREDENTIALS_FILE": "{files}/keys", "AWS_ENDPOINT_URL": "{url}"},
    "a profile": {"AWS_CONFIG_FILE": "{files}/config", "AWS_PROFILE": "ceph"},
}


@pytest.mark.parametrize("chain", CHAINS)
def test_credentials_come_from_the_usual_places(place, ask, ceph, monkeypatch, tmp_path, chain):
    keys = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    url = ceph.options["endpoint_url"]
    (tmp_path / "keys").write_text(f"[default]\n{keys}")
    (tmp_path / "config").write_text(f"[profile ceph]\n{keys}endpoint_url = {url}\n")
    for name, value in CHAINS[chain].items():
        monkeypatch.setenv(name, value.format(url=url, files=tmp_path))
    # The chain is another one each time: a client that was made before would answer.
    assert ask("lint", f"{place}/shards", given={"max_concurrency": 20 + len(chain)})[0] == 0


def test_a_secret_is_in_no_line(place, ask):
    for words in ("lint {p}/shards", "verify {p}/run"):
        _, output = ask(*words.format(p=place).split(), secret="CANARY-1", token="CANARY-2")
        assert "CANARY" not in output


def test_a_client_that_is_not_installed_is_named_with_its_extra(ask, monkeypatch):
    monkeypatch.delitem(_registry, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    code, output = ask("lint", "gs://bucket/x", given={})
    assert code == 1 and "pip install 'wordsworth[gcs]'" in output and LINE.fullmatch(output)


def test_azures_refusals_are_one_line(azurite, ask, monkeypatch):
    monkeypatch.setattr(preflight, "PATIENCE_S", 2.0)
    wrong = azure_options(azurite.port, key="AAAA")
    nowhere = azure_options(1)
    cases = {
        "the credentials are wrong": (wrong, azurite.root),
        "no answer from 127.0.0.1:1": (nowhere, azurite.root),
        "the bucket does not exist": (azurite.options, "az://no-such-container"),
        "the connection string is wrong": ({"connection_string": "nonsense"}, azurite.root),
        "no credentials were found": ({}, azurite.root),
    }
    for told, (options, root) in cases.items():
        code, output = ask("lint", f"{root}/x", given=options)
        assert code == 1 and f"cannot use {root}/x: {told}" in output, output
        assert LINE.fullmatch(output)


def test_google_is_not_asked_for_credentials_where_its_metadata_service_is_not(monkeypatch):
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr(google_credentials, "METADATA", "127.0.0.1:1")
    google_credentials.prepare({})
    assert os.environ["NO_GCE_CHECK"] == "true"


def test_a_file_of_google_credentials_that_is_not_there_is_said(ask, monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    code, output = ask("lint", "gs://bucket/x", given={})
    assert code == 1 and "gone.json, which is not there" in output and LINE.fullmatch(output)


# ---- what is allowed works --------------------------------------------------------------------------------

SMALL = "--width 32 --depth 2 --heads 2 --patch-size 8 --image-size 32 --epochs 1 --batch-size 4"


@pytest.fixture(params=["ceph", "azurite", "rclone"])
def store(request):
    if request.param == "rclone":
        yield from served(servers.rclone)
    else:
        yield request.getfixturevalue(request.param)


LOOKING = [name for name in COMMANDS if name.split()[0] in ("show", "report", "explain", "diff")]


def refusal(words: list[str], options: dict, capsys) -> tuple[int, str]:
    """Return the exit code and the output of a command."""
    capsys.readouterr()
    code = run([*words, "--storage-options", json.dumps(options)])
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("wrong secret", "the credentials are wrong"),
        ("nobody listens", "check the network and the store's address"),
    ],
)
@pytest.mark.parametrize("name", LOOKING)
def test_what_looks_at_a_run_or_a_model_names_the_stores_trouble_in_one_line(
    place, ask, monkeypatch, tmp_path, name, case, told
):
    # On a busy machine the store's own answer, which names the reason, may take long.
    monkeypatch.setattr(preflight, "PATIENCE_S", 1.0 if case in UNANSWERED else 60.0)
    monkeypatch.chdir(tmp_path)
    code, output = ask(*COMMANDS[name].format(p=place).split(), **REFUSALS[case][0])
    assert code == 1 and f"cannot use {place}/" in output and told in output
    assert LINE.fullmatch(output)


@pytest.mark.long
def test_every_command_works_from_and_to_every_store(store, small_model, tmp_path, local_ray, capsys):
    fs, root = open_filesystem(f"{store.root}/all", store.options)
    write_shards(tmp_path / "shards", shards=2, images=3)
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "classes" / name / f"{number}.jpg").write_bytes(photo(number + 10 * (name == "dog")))
    fs.put(f"{tmp_path}/", f"{root}/", recursive=True)
    fs.put(f"{small_model}/", f"{root}/model/", recursive=True)
    p = f"{store.root}/all"
    lines = [
        f"lint {p}/shards",
        f"plan {p}/shards --model {p}/model --seconds 0.2 --output {p}/run",
        f"label {p}/shards --output {p}/run --model {p}/model --keep json",
        f"verify {p}/run --source",
        f"compact {p}/run --output {p}/large",
        f"verify {p}/large --source",
        f"show {p}/run --output {p}/sheet.png",
        f"show {p}/large --key 001/0002 --output {p}/shown",
        f"diff {p}/run {p}/large --output {p}/diff.html --fail-if-flips-over 0",
        f"report {p}/run",
        f"report {p}/large --output {p}/page.html",
        f"explain {p}/classes/cat/0.jpg --model {p}/model --output {p}/explained",
        f"embed {p}/classes --output {p}/vectors --model {p}/model",
        f"verify {p}/vectors --source",
        f"pack {p}/classes --output {p}/packed",
        f"pretrain {p}/packed --val {p}/packed --output {p}/trained {SMALL}",
        f"finetune {p}/packed --model {p}/trained --output {p}/tuned --epochs 1 --batch-size 4",
        f"report {p}/trained",
        f"evaluate {p}/packed --model {p}/tuned --output {p}/evaluated",
        f"convert {p}/tuned --output {p}/converted --format timm",
        f"convert {p}/converted --output {tmp_path}/back",
    ]
    for line in lines:
        code = run([*line.split(), "--storage-options", json.dumps(store.options)])
        assert code == 0, f"{line}: {capsys.readouterr()}"
    for file in (
        "run/report.html",
        "page.html",
        "explained/explain.html",
        "trained/report.html",
        "diff.html",
    ):
        assert fs.size(f"{root}/{file}") > 1000
    gone = p.replace(BUCKET, "no-such-bucket")
    for name in LOOKING:
        words = COMMANDS[name].format(p=gone).split()
        code, told = refusal(words, store.options, capsys)
        assert code == 1 and told.startswith(f"wordsworth: cannot use {gone}/") and LINE.fullmatch(told), told
