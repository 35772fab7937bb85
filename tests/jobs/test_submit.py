"""submit: a command runs as a job of a real cluster, under a token, and everything about it comes back."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import rayjob_schema
from tests.support.builders import make_model, photo, write_tar
from tests.support.ray_cluster import TOKEN, RayCluster, ray_cluster
from wordsworth.jobs.cli import Terminated, run
from wordsworth.jobs.submit import Follower
from wordsworth.pipeline.cluster.package import stage_package
from wordsworth.pipeline.verification.verifier import verify

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
SECRET = "CANARYsecretofthenodes"  # of a store; it stands in the nodes' file alone


# ---- a manifest in place of a job -----------------------------------------------------------------------

LABEL = ["label", "s3://photos/in", "--output", "s3://photos/My labels", "--model", "S/16", "--grace", "100"]


def manifest(*options: str, capsys, command: list[str] = LABEL) -> dict:
    assert run(["submit", "--kuberay", *options, "--", *command]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_manifest_is_printed_for_kuberay(capsys):
    job = manifest("--image", "wordsworth:1", "--env-file", "/run/keys.env", capsys=capsys)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"label-my-labels-[0-9a-f]{8}", job["metadata"]["name"])
    spec = job["spec"]
    assert (
        spec["entrypoint"]
        == "wordsworth label s3://photos/in --output 's3://photos/My labels' --model S/16 --grace 100"
    )
    assert spec["backoffLimit"] == 2 and spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        env = {one["name"]: one["value"] for one in container["env"]}
        assert container["image"] == "wordsworth:1"
        assert container["envFrom"] == [{"secretRef": {"name": "wordsworth-store"}}]
        assert env["WORDSWORTH_ENV_FILE"] == "/run/keys.env"
        assert container["resources"]["limits"] == container["resources"]["requests"]
    assert len(job["metadata"]["name"]) <= 47
    # Each layer waits for longer than the one inside it.
    drain = {one["name"]: one["value"] for one in pods[1]["spec"]["containers"][0]["env"]}
    assert (
        100
        < int(drain["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        < pods[1]["spec"]["terminationGracePeriodSeconds"]
    )


def test_settings_of_stores_travel_and_are_named_but_no_profile_and_no_key(capsys, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://store:9000",
        "AWS_REGION": "eu",
        "AWS_PROFILE": "me",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert run(["submit", "--kuberay", "--image", "i", "--env", "AWS_REGION=us", "--", *LABEL]) == 0
    said = capsys.readouterr()
    (container,) = yaml.safe_load(said.out)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ]
    env = {one["name"]: one["value"] for one in container["env"]}
    assert (env["AWS_ENDPOINT_URL"], env["AWS_REGION"]) == ("http://store:9000", "us")
    assert "AWS_PROFILE" not in env and SECRET not in said.out
    assert said.err == "from this environment, with the job: AWS_ENDPOINT_URL=http://store:9000\n"


def test_a_command_that_a_shell_would_change_passes_one_shell_alone(capsys):
    assert manifest("--image", "i", capsys=capsys)["spec"]["submissionMode"] == "HTTPMode"
    plain = [part.replace("My labels", "labels") for part in LABEL]
    spec = manifest("--image", "i", capsys=capsys, command=plain)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] == "i"


@pytest.mark.parametrize("output", ["s3://photos/labels", "s3://photos/my $labels"])
def test_kuberay_knows_every_field_of_a_printed_manifest(output, capsys):
    command = ["pretrain", "s3://photos/in", "--output", output, "--variant", "S/16", "--wait-for", "GPU=2"]
    options = ("--image", "i", "--worker", "cpu=6,memory=32Gi,nvidia.com/gpu=1", "--env", "A=b")
    job = manifest(*options, capsys=capsys, command=command)
    validator = jsonschema.Draft7Validator(rayjob_schema())
    assert [error.message for error in validator.iter_errors(job)] == []
    assert (
        job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] == 0
    )  # the command asks for them


def test_workers_have_what_was_asked_for(capsys):
    job = manifest(
        "--image", "i", "--worker", "cpu=6,memory=32Gi,nvidia.com/gpu=1", "--workers", "3", capsys=capsys
    )
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 3)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "6", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert group["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert int(group["rayStartParams"]["object-store-memory"]) == 8 << 30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--kuberay"], "--image"),
        (["--kuberay", "--image", "i", "--worker", "cpu=6"], "--worker"),
        (["--kuberay", "--image", "i", "--worker", "cpu=six,memory=1Gi"], "--worker"),
        (["--env", "AWS_SECRET_ACCESS_KEY=x"], "is a secret"),
        (["--env", "NAME"], "NAME=VALUE"),
        (["--env-file", "keys.env"], "absolute"),
        (["--address", "ray://head:10001"], "job server, http://head:8265"),
    ],
)
def test_wrong_usage_is_one_line(options, says, capsys):
    assert run(["submit", *options, "--", *LABEL]) == 2
    assert says in capsys.readouterr().err


# ---- Ctrl-C ---------------------------------------------------------------------------------------------


class Person:
    """Stand in for a terminal: what a person types, or an interrupt while they are asked."""

    def __init__(self, *answers: str | BaseException):
        self.answers = list(answers)

    def isatty(self) -> bool:
        return bool(self.answers)

    def readline(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Client:
    """Stand in for Ray's client of one job."""

    def __init__(self, status: str = "RUNNING", code: int | None = None, message: str | None = None):
        self.info = SimpleNamespace(status=status, driver_exit_code=code, message=message)

    def stop_job(self, job: str) -> None:
        self.info.status = "STOPPED"

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.info


def followed(
    client: Client, log: list[str | BaseException], person: Person, monkeypatch
) -> tuple[int, list[str]]:
    """Follow a job whose log has these lines and interrupts; the exit code, and what was said."""
    said: list[str] = []
    follower = Follower(client, "label-out-1", "http://head:8265", said.append)
    rest = iter(log)

    def lines():
        for line in rest:
            if isinstance(line, BaseException):
                raise line
            yield line

    follower._log = SimpleNamespace(lines=lines)
    monkeypatch.setattr(sys, "stdin", person)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return follower.follow(), said


def test_ctrl_c_asks_and_stops_the_job(monkeypatch, capsys):
    client = Client()
    code, said = followed(client, ["one", KeyboardInterrupt(), "interrupted"], Person("y\n"), monkeypatch)
    assert (code, client.info.status) == (130, "STOPPED")
    assert said[0].startswith("stop the job?")
    assert "the same command again continues" in said[-1]
    assert capsys.readouterr().out.split() == ["one", "interrupted"]


@pytest.mark.parametrize("answer", ["\n", "n\n", "", KeyboardInterrupt()])
def test_any_other_answer_leaves_the_job(answer, monkeypatch):
    client = Client()
    code, said = followed(client, [KeyboardInterrupt()], Person(answer), monkeypatch)
    assert (code, client.info.status) == (130, "RUNNING")
    assert "ray job stop label-out-1 --address http://head:8265" in said[-1]


def test_a_second_ctrl_c_leaves_a_job_that_is_being_stopped(monkeypatch):
    log = [KeyboardInterrupt(), "one", KeyboardInterrupt(), "two"]
    code, said = followed(Client(), log, Person("y\n"), monkeypatch)
    assert code == 130
    assert "goes on" in said[-1]


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    for interrupt, expected in ((KeyboardInterrupt(), 130), (Terminated(), 143)):
        client = Client()
        code, said = followed(client, [interrupt], Person(), monkeypatch)
        assert (code, client.info.status, len(said)) == (expected, "RUNNING", 1)


@pytest.mark.parametrize(
    ("client", "code", "says"),
    [
        (Client("SUCCEEDED", 0), 0, ""),
        (Client("FAILED", 3), 3, ""),
        (Client("FAILED", 127), 127, "--python"),
        (Client("FAILED", None, "runtime_env setup failed:\n no space"), 1, "setup failed: no space"),
        (Client("STOPPED"), 143, "was stopped"),
    ],
)
def test_the_end_of_a_job_is_the_end_of_the_command(client, code, says, monkeypatch):
    found, said = followed(client, ["one"], Person(), monkeypatch)
    assert found == code
    assert says in " ".join(said)


@pytest.mark.slow
def test_a_python_without_the_dependencies_is_one_line(tmp_path):
    """Return what a job says whose nodes have Ray and not what this package needs."""
    stage_package(tmp_path)
    command = [sys.executable, "-S", "-m", "wordsworth", "label"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"wordsworth: \S+ on \S+ has no package \w+: .*--python\)\n", done.stderr)


# ---- a real cluster -------------------------------------------------------------------------------------


class Place:
    """Hold a cluster under a token, and a folder that its nodes share."""

    def __init__(self, cluster: RayCluster, root: Path):
        self.cluster = cluster
        self.root = root
        make_model(root / "model", image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_dim=64)
        (root / "keys.env").write_text(f"STORE_SECRET={SECRET}\n")

    def shards(self, name: str, shards: int = 1, images: int = 6) -> Path:
        folder = self.root / name
        folder.mkdir()
        for number in range(shards):
            names = [f"{number}-{index}.jpg" for index in range(images)]
            write_tar(
                folder / f"{number:03}.tar", {one: photo(seed=index) for index, one in enumerate(names)}
            )
        return folder

    def label(self, source: Path, output: Path, *more: str) -> list[str]:
        return ["label", str(source), "--output", str(output), "--model", str(self.root / "model"), *more]

    def environment(self, **changes: str | None) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= self.cluster.env | {"PYTHONPATH": str(ROOT)}
        return {name: value for name, value in (env | changes).items() if value is not None}

    def submit(self, command: list[str], *options: str, cwd: Path | None = None, **env: str | None):
        address = [] if "--address" in options else ["--address", self.cluster.jobs]
        line = [sys.executable, "-m", "wordsworth", "submit", *address]
        line += ["--python", sys.executable, *options, "--", *command]
        return subprocess.run(
            line,
            env=self.environment(**env),
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    """A cluster whose nodes have another package of our name, which no job may import."""
    root = tmp_path_factory.mktemp("cluster")
    (root / "nodes" / "wordsworth").mkdir(parents=True)
    (root / "nodes" / "wordsworth" / "__init__.py").write_text(
        "raise SystemExit('the package of the nodes')\n"
    )
    with ray_cluster(
        head={"num_cpus": 4, "memory": 3 << 30}, env={"PYTHONPATH": str(root / "nodes")}
    ) as cluster:
        yield Place(cluster, root)


def said_by_ray(place: Place) -> str:
    """Return all that Ray keeps of jobs and shows: the job API, and every file of the session's logs."""
    asked = ["curl", "-s", "-H", f"Authorization: Bearer {TOKEN}", f"{place.cluster.jobs}/api/jobs/"]
    texts = [subprocess.run(asked, capture_output=True, text=True, check=True).stdout]
    for path in (place.cluster.folder / "session_latest" / "logs").rglob("*"):
        if path.is_file():
            texts.append(path.read_text(errors="replace"))
    return "\n".join(texts)


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_token_nothing_is_submitted(place):
    command = ["label", "s3://photos/in", "--output", "s3://photos/out", "--model", "S/16"]
    home = str(place.root)
    missing = place.submit(command, RAY_AUTH_TOKEN=None, HOME=home)
    assert missing.returncode == 1, missing.stderr
    assert "asks for a token: give the cluster's in RAY_AUTH_TOKEN" in missing.stderr
    wrong = place.submit(command, RAY_AUTH_TOKEN="0" * 64, RAY_AUTH_MODE="disabled")
    assert wrong.returncode == 1
    assert "refuses the token" in wrong.stderr
    gcs = place.submit(command, "--address", f"http://{place.cluster.address}")
    assert gcs.returncode == 1
    assert "is no Ray job server" in gcs.stderr
    for done in (missing, wrong, gcs):
        assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_command_brings_its_package_and_files_and_gives_its_exit_code(place):
    mine = place.root / "mine"
    for name in ("pipeline", "jobs"):
        (mine / name).mkdir(parents=True)
        (mine / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    odd = place.root / "a key with  $HOME `id` 'quotes\".tar"
    write_tar(odd, {"a.jpg": photo(1), "b.jpg": photo(2), "bad.jpg": b"no image"})
    (mine / "shards.txt").write_text(f"{odd}\n")
    output = place.root / "out $(id) 'odd'"
    command = place.label(Path("@shards.txt"), output, "--max-error-rate", "0.1", "--json")
    keys = place.root / "keys.env"
    done = place.submit(command, "--env-file", str(keys), cwd=mine, STORE_SECRET=SECRET)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "INFO" not in done.stderr
    assert "33.33% of the rows have an error" in done.stdout
    assert "submitted job label-out-id-odd-" in done.stderr
    assert verify(str(output), True, {}).ok
    assert json.loads((output / "_run" / "summary.json").read_text())["rows"] == 3
    shown = said_by_ray(place)
    assert "WORDSWORTH_ENV_FILE" in shown  # the name of the file is there
    for secret in (SECRET, TOKEN):
        assert secret not in shown


@pytest.mark.ray
@pytest.mark.slow
def test_a_file_of_keys_that_a_node_lacks_is_one_line(place):
    command = place.label(place.root / "nothing", place.root / "no-keys")
    done = place.submit(command, "--env-file", "/nowhere/keys.env")
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert re.search(r"--env-file /nowhere/keys.env on \S+: no such file", last)
    assert not (place.root / "no-keys").exists()


@pytest.mark.ray
@pytest.mark.long
def test_a_job_is_joined_stopped_by_ctrl_c_and_submitted_again(place):
    source, output = place.shards("many", shards=12, images=40), place.root / "stopped"
    command = place.label(source, output, "--unit-rows", "10")
    first = place.submit(command, "--no-follow")
    assert first.returncode == 0, first.stderr
    (job,) = re.findall(r"submitted job (\S+)", first.stderr)
    other = place.submit([*command, "--top-k", "2"])
    assert other.returncode == 1
    assert f"job {job} works on" in other.stderr

    line = [sys.executable, "-m", "wordsworth", "submit", "--address", place.cluster.jobs]
    line += ["--python", sys.executable, "--", *command]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, line, place.environment())
    wait_for(lambda: list((output / "predictions").glob("*.parquet")), 120)
    os.write(terminal, b"\x03")
    read_until(terminal, "stop the job?")
    os.write(terminal, b"y\r")
    said = read_until(terminal, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, said
    assert f"job {job} was stopped" in said
    assert not verify(str(output), False, {}).ok
    kept = {path: path.stat().st_mtime_ns for path in (output / "predictions").glob("*.parquet")}

    again = place.submit(command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"submitted job {job}-2" in again.stderr
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert verify(str(output), True, {}).ok


def wait_for(is_there, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.2)  # nothing tells when a job has come so far


def read_until(terminal: int, text: str | None) -> str:
    """Return what a process writes on its terminal, up to a text or to its end."""
    said = ""
    while text is None or text not in said:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the process has ended
            break
        if not part:
            break
        said += part.decode(errors="replace")
    return said


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """The files of this repository, as somebody has them who cloned it."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("way", ["working directory", "py_modules"])
def test_rays_own_submit_runs_a_checkout_that_no_node_has_installed(place, checkout, way):
    """Run the commands that docs/cluster.md gives for `ray job submit`."""
    output = place.root / way.replace(" ", "-")
    source = place.shards(f"in-{output.name}")
    line = [RAY, "job", "submit", "--address", place.cluster.jobs]
    if way == "py_modules":
        (place.root / "modules").mkdir()
        for name in ("wordsworth", "jobs", "pipeline", "vit_model"):
            target = place.root / "modules" / ("wordsworth" if name == "wordsworth" else f"wordsworth/{name}")
            shutil.copytree(checkout / name, target, dirs_exist_ok=True)
        line += [
            "--runtime-env-json",
            json.dumps({"py_modules": [str(place.root / "modules" / "wordsworth")]}),
        ]
    else:
        line += ["--working-dir", str(checkout)]
    line += ["--", sys.executable, "-m", "wordsworth", *place.label(source, output)]
    done = subprocess.run(
        line, env=place.environment(PYTHONPATH=None), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify(str(output), True, {}).ok
    refused = subprocess.run(
        line, env=place.environment(RAY_AUTH_TOKEN="0" * 64), capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0


@pytest.mark.ray
@pytest.mark.long
def test_two_jobs_at_once_are_both_exact(place):
    source = place.shards("for-two", shards=3)
    outputs = [place.root / "one", place.root / "other"]
    line = [sys.executable, "-m", "wordsworth", "submit", "--address", place.cluster.jobs]
    line += ["--python", sys.executable, "--"]
    started = [
        subprocess.Popen(
            [*line, *place.label(source, output)], env=place.environment(), stdout=subprocess.PIPE, text=True
        )
        for output in outputs
    ]
    for process, output in zip(started, outputs, strict=True):
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said
        assert verify(str(output), True, {}).ok


@pytest.mark.ray
@pytest.mark.long
def test_a_submitter_that_is_told_to_end_leaves_the_job(place):
    source, output = place.shards("left", shards=3), place.root / "left-alone"
    line = [sys.executable, "-m", "wordsworth", "submit", "--address", place.cluster.jobs]
    line += ["--python", sys.executable, "--", *place.label(source, output)]
    process = subprocess.Popen(
        line, env=place.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while "submitted job" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 143
    assert "the same command follows it" in said
    followed = place.submit(place.label(source, output))
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "runs this command already" in followed.stderr
    assert verify(str(output), True, {}).ok


@pytest.mark.ray
@pytest.mark.long
def test_a_cluster_without_tokens_takes_a_job_with_one_line_of_warning(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.jpg": photo(1)})
    line = [sys.executable, "-m", "wordsworth", "submit", "--python", sys.executable]
    command = ["--", "lint", str(tmp_path / "a.tar")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with ray_cluster(head={"num_cpus": 4}, token=None) as cluster:
        for options, warnings in (([], 1), (["--insecure"], 0)):
            address = ["--address", cluster.jobs, *options]
            done = subprocess.run(
                [*line, *address, *command], env=env, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stderr.count("asks for no token") == warnings


@pytest.mark.ray
@pytest.mark.long
def test_a_node_without_the_file_of_keys_is_named_before_anything_is_written(tmp_path, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys")
    hidden = f'mount --make-rprivate / && mount -t tmpfs none {keys} && exec "$@"'
    with ray_cluster(head={"num_cpus": 4, "memory": 3 << 30}) as cluster:
        cluster.add_node(prefix=("unshare", "-m", "sh", "-c", hidden, "sh"))
        place = Place(cluster, tmp_path)
        shutil.copy(tmp_path / "keys.env", keys)
        source, output = place.shards("in"), tmp_path / "out"
        done = place.submit(place.label(source, output), "--env-file", str(keys / "keys.env"))
        assert done.returncode == 1, done.stdout + done.stderr
        last = done.stdout.strip().splitlines()[-1]
        assert re.search(
            rf"node 127\.0\.0\.1.* has no keys: --env-file {keys}/keys.env on \S+: no such file", last
        )
        assert not list(output.rglob("*.parquet"))
