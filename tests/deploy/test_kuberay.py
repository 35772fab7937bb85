"""Hold the RayJobs of deploy/ against KubeRay's schema, and against what people report of their own.

Reports on KubeRay: failures without a new try (1902) or with tries that nobody asked for (2058, 2376,
2393); heads out of memory (528, 4287, 4356); groups that do not leave zero (321, 863, 2071); pods that end
without a grace (5004), or hang by a hook of `ray stop` (2606); tokens that the submitter lacks (1824,
4210); a cluster that stays (1023, 1832). On Ray: workers that the autoscaler ends while they work (34019,
35560), restarted ones (64855), a job that is killed after three seconds (30803).
"""

import copy
import re

import jsonschema
import pytest

from tests.deploy import manifests
from tests.deploy.manifests import byte_count, container, entrypoint, environment, groups, options, rayjob

RAYJOBS = pytest.mark.parametrize("name", manifests.RAYJOBS)
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(manifests.rayjob_schema())


def pod_templates(manifest):
    spec = manifest["spec"]
    return [spec["submitterPodTemplate"], *(group["template"] for group in groups(manifest).values())]


@RAYJOBS
def test_kuberay_knows_every_field(name, validator):
    assert [error.message for error in validator.iter_errors(rayjob(name))] == []


def test_a_field_that_kuberay_does_not_know_is_seen(validator):
    manifest = rayjob("label")
    misspelt = copy.deepcopy(manifest)
    misspelt["spec"]["backofLimit"] = misspelt["spec"].pop("backoffLimit")
    deep = copy.deepcopy(manifest)
    container(groups(deep)["predict"])["resources"]["limit"] = {}
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "tokens"
    for one in (misspelt, deep, wrong):
        assert list(validator.iter_errors(one))


@RAYJOBS
def test_every_pod_has_one_image_with_the_version_of_ray_in_the_lock(name):
    manifest = rayjob(name)
    images = {pod["spec"]["containers"][0]["image"] for pod in pod_templates(manifest)}
    assert len(images) == 1
    ray = manifest["spec"]["rayClusterSpec"]["rayVersion"]
    assert re.search(
        rf"^ray(\[.*\])?=={re.escape(ray)} ", (manifests.ROOT / "requirements.lock").read_text(), re.M
    )


@RAYJOBS
def test_the_cluster_asks_for_a_token_of_its_own(name):
    # A secret that is named would be shared by all clusters of the namespace; without one KubeRay makes one.
    assert rayjob(name)["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


@RAYJOBS
def test_no_secret_stands_in_a_manifest(name):
    manifest = rayjob(name)
    for group in groups(manifest).values():
        assert [one for one in environment(group) if SECRET.search(one)] == []
        assert container(group)["envFrom"] == [{"secretRef": {"name": "wordsworth-store"}}]
    assert "runtimeEnvYAML" not in manifest["spec"]  # Ray shows it to everybody who may ask the job server
    assert "--storage-options" not in entrypoint(manifest)


@RAYJOBS
def test_no_container_is_root_or_can_become_it(name):
    manifest = rayjob(name)
    held = [manifest["spec"]["rayClusterSpec"]["autoscalerOptions"]]
    for pod in pod_templates(manifest):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        held += pod["spec"]["containers"]
    for one in held:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


@RAYJOBS
def test_every_container_has_a_limit_and_gets_the_memory_it_may_take(name):
    """Check what keeps a pod from being killed later: a request below the limit promises nothing."""
    manifest = rayjob(name)
    for group in groups(manifest).values():
        resources = container(group)["resources"]
        assert resources["requests"] == resources["limits"]
    assert byte_count(container(groups(manifest)["head"])["resources"]["limits"]["memory"]) >= 8 << 30
    assert (
        byte_count(manifest["spec"]["rayClusterSpec"]["autoscalerOptions"]["resources"]["limits"]["memory"])
        >= 1 << 30
    )


@RAYJOBS
def test_ray_does_not_count_the_memory_of_a_node_twice(name):
    """Check the workers: KubeRay gives Ray the whole limit as memory of tasks, and the objects, which are in
    the same limit, come on top."""
    for group_name, group in groups(rayjob(name)).items():
        if group_name != "head":
            given = group["rayStartParams"]
            limit = byte_count(container(group)["resources"]["limits"]["memory"])
            assert int(given["memory"]) + int(given["object-store-memory"]) <= 0.9 * limit


@RAYJOBS
def test_the_head_does_no_work_and_is_not_moved(name):
    head = groups(rayjob(name))["head"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    annotations = head["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert "nodeSelector" not in head["template"]["spec"]  # that of spot machines is for workers


@RAYJOBS
def test_workers_start_from_zero_and_say_beforehand_what_they_have(name):
    """Check what the autoscaler knows of a group that has no pod yet: its limits and its labels."""
    manifest = rayjob(name)
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    decode, model = (group for group_name, group in groups(manifest).items() if group_name != "head")
    for group in (decode, model):
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        assert group["labels"] == {"pool": group["groupName"]}
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # else the autoscaler cannot remove it
    assert "num-gpus" not in manifests.ray_start_options(decode)
    assert manifests.ray_start_options(model)["num-gpus"] == "1"
    tolerated = [one["key"] for one in model["template"]["spec"]["tolerations"]]
    assert "nvidia.com/gpu" in tolerated


@RAYJOBS
def test_what_the_command_waits_for_is_what_the_groups_can_have(name):
    manifest = rayjob(name)
    given = options(entrypoint(manifest))
    wanted = dict(one.split("=") for one in given["--wait-for"].split(","))
    can_have = {"CPU": 0.0, "GPU": 0.0}
    for group_name, group in groups(manifest).items():
        if group_name != "head":
            has = manifests.ray_start_options(group)
            can_have["CPU"] += group["maxReplicas"] * float(has["num-cpus"])
            can_have["GPU"] += group["maxReplicas"] * float(has.get("num-gpus", 0))
    assert all(0 < float(amount) <= can_have[resource] for resource, amount in wanted.items())
    for option in ("--decode-on", "--predict-on"):
        if option in given:
            assert given[option] in [f"pool={group_name}" for group_name in groups(manifest)]


@RAYJOBS
def test_a_node_that_must_go_has_time_for_a_unit(name):
    """Check the order: the run ends its units, then Ray's drain is over, then Kubernetes kills."""
    manifest = rayjob(name)
    grace = float(options(entrypoint(manifest)).get("--grace", 30))
    for group_name, group in groups(manifest).items():
        killed = group["template"]["spec"]["terminationGracePeriodSeconds"]
        if group_name == "head":
            assert grace < float(environment(group)["RAY_JOB_STOP_WAIT_TIME_S"]) < killed
        else:
            assert grace < float(environment(group)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < killed
        assert "lifecycle" not in container(group)


@RAYJOBS
def test_no_failure_is_tried_for_ever(name):
    """Check what bounds the attempts: KubeRay tries again whatever the exit code was."""
    spec = rayjob(name)["spec"]
    assert 1 <= spec["backoffLimit"] <= 3
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["submitterConfig"]["backoffLimit"] <= 2
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


@RAYJOBS
def test_the_cluster_goes_when_the_command_is_done(name):
    spec = rayjob(name)["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0


@RAYJOBS
def test_the_operator_takes_the_names(name):
    # 47 characters for a RayJob and 50 for its cluster, of the letters of a host name.
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", rayjob(name)["metadata"]["name"])
    assert all(re.fullmatch(r"[a-z]+", group_name) for group_name in groups(rayjob(name)))
