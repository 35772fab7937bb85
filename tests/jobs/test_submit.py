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

import pytest

from tests.support.builders import make_model, photo, write_tar
from tests.support.ray_cluster import TOKEN, RayCluster, ray_cluster
from wordsworth.pipeline.verification.verifier import verify

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
SECRET = "CANARYsecretofthenodes"  # of a store; it stands in the nodes' file alone


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
        assert re.search(rf"node \S+.* has no keys: --env-file {keys}/keys.env on \S+: no such file", last)
        assert not list(output.rglob("*.parquet"))


@pytest.mark.ray
@pytest.mark.long
def test_a_job_whose_head_was_started_anew_is_said_to_be_gone_and_continues(tmp_path):
    with ray_cluster(head={"num_cpus": 4, "memory": 3 << 30}) as cluster:
        place = Place(cluster, tmp_path)
        output = place.root / "out"
        command = place.label(place.shards("in", shards=12, images=40), output, "--unit-rows", "10")
        line = [sys.executable, "-m", "wordsworth", "submit", "--address", cluster.jobs]
        line += ["--python", sys.executable, "--", *command]
        first = subprocess.Popen(
            line, env=place.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_for(lambda: list((output / "predictions").glob("*.parquet")), 300)
            cluster.head.kill()
            port, jobs_port = cluster.address.rpartition(":")[2], cluster.jobs.rpartition(":")[2]
            cluster.start_head(num_cpus=4, memory=3 << 30, port=port, dashboard_port=jobs_port)
            said = first.communicate(timeout=120)[1]
        finally:
            first.kill()
        assert first.returncode == 1, said
        (job,) = re.findall(r"submitted job (\S+)", said)
        assert f"knows no job {job} any more" in said.splitlines()[-1]
        again = place.submit(command)
        assert again.returncode == 0, again.stdout + again.stderr
        assert f"submitted job {job} to" in again.stderr
        assert verify(str(output), True, {}).ok
