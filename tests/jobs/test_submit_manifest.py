"""submit --kuberay: what a printed manifest says, and options that cannot go together."""

import re

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import rayjob_schema
from wordsworth.jobs.cli import run

SECRET = "CANARYsecretofthenodes"

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
