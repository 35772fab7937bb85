"""joining, node_check: on a real cluster, every node works with the store of the command, or the command says
which node does not, and writes nothing."""

import json
import os
import socket
import subprocess
import sys
import venv
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import servers
from tests.support.ray_cluster import TOKEN, ray_cluster

pytestmark = [pytest.mark.ray, pytest.mark.long]

BUCKET = "places"
# A driver that joins once for each environment, and asks the nodes about places.
DRIVER = """
import json, os, sys
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.session import ray_session
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.places import check_places

told = {}
for order in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(order.get("env", {}))
    for name in order.get("unset", ()):
        os.environ.pop(name, None)
    notes = []
    answer = told[order["name"]] = {"notes": notes}
    try:
        with ray_session(ClusterRequest(address=order.get("address")), notes.append):
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

            @ray.remote
            def see():
                names = ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_MODE")
                return [os.environ.get(name) for name in names]

            if order.get("see"):
                nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
                at = [see.options(scheduling_strategy=On(node, soft=False)) for node in nodes]
                answer["seen"] = dict(zip(nodes, ray.get([task.remote() for task in at])))
            for name, (objects, output) in order.get("places", {}).items():
                try:
                    check_places(lambda: objects, output, "_run/plan.json", {}, notes.append)
                    answer[name] = "good"
                except UserError as error:
                    answer[name] = str(error)
    except UserError as error:
        answer["refused"] = str(error)
    answer["mode after"] = os.environ.get("RAY_AUTH_MODE")
    os.environ.clear()
    os.environ.update(before)
print(json.dumps(told))
"""
OVER_FOLDER = 'mount --make-rprivate / && mount -t tmpfs none "$0" && exec "$@"'


def can_unshare() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def store(backend: servers.Backend) -> dict[str, str]:
    """Return what the environment says of a store."""
    return {
        "AWS_ENDPOINT_URL": backend.options["endpoint_url"],
        "AWS_ACCESS_KEY_ID": servers.KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def fill(backend: servers.Backend):
    import fsspec

    fs = fsspec.filesystem("s3", skip_instance_cache=True, **backend.options)
    fs.mkdir(BUCKET)
    fs.pipe_file(f"{BUCKET}/src/a.tar", b"the same in both stores")
    return fs


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Join a cluster of three nodes, and return what the driver sees: one node has other mounts, one lacks
    the package."""
    if not can_unshare():
        pytest.skip("a node with a disk of its own needs the right to mount (unshare -m)")
    root = tmp_path_factory.mktemp("nodes")
    shared, apart = root / "shared", root / "apart"
    for folder in (shared, apart):
        (folder / "src").mkdir(parents=True)
        (folder / "src" / "a.tar").write_bytes(b"one")
    bare = root / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    site = next(bare.glob("lib/python*/site-packages"))
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(f"{ours}\n")  # all but what is installed by a .pth file: this package
    with ExitStack() as stack:
        one = stack.enter_context(servers.moto())
        two = stack.enter_context(servers.moto())
        stores = [fill(one), fill(two)]
        everywhere = store(two) | {"HOME": str(root), "AWS_SECRET_ACCESS_KEY": "of the nodes"}
        cluster = stack.enter_context(ray_cluster(token=TOKEN, head={"num_cpus": 4}, env=everywhere))
        cluster.add_node(prefix=("unshare", "-m", "bash", "-c", OVER_FOLDER, str(apart)))

        def drive(*orders: dict) -> dict:
            env = os.environ | cluster.env | store(one)
            del env["RAY_AUTH_MODE"]  # what the cluster wants is found out
            command = [sys.executable, "-c", DRIVER, json.dumps(orders)]
            # Ray adds the driver's folder to the path of every worker: nothing of this package lies there.
            done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, done.stderr[-3000:]
            return json.loads(done.stdout.splitlines()[-1])

        at = {"address": cluster.address}
        config = root / "aws-config"
        config.write_text(f"[default]\nendpoint_url = {store(one)['AWS_ENDPOINT_URL']}\n")
        elsewhere = {"AWS_ENDPOINT_URL": store(two)["AWS_ENDPOINT_URL"]}
        job = json.dumps({"runtime_env": {"env_vars": elsewhere}, "metadata": {}})
        s3 = f"s3://{BUCKET}/src/a.tar"
        told = drive(
            {
                "name": "travels",
                **at,
                "see": True,
                "places": {
                    "s3": [[s3], f"s3://{BUCKET}/out"],
                    "shared": [[f"{shared}/src/a.tar"], f"{shared}/new/out"],
                    "source apart": [[f"{apart}/src/a.tar"], f"s3://{BUCKET}/out"],
                    "output apart": [[s3], f"{apart}/new/out"],
                },
            },
            {
                "name": "by a file",
                **at,
                "env": {"AWS_CONFIG_FILE": str(config)},
                "unset": ["AWS_ENDPOINT_URL"],
                "places": {"s3": [[s3], f"s3://{BUCKET}/out"]},
            },
            {
                "name": "in a job",
                "env": {"RAY_ADDRESS": cluster.address, "RAY_JOB_CONFIG_JSON_ENV_VAR": job},
                "see": True,
            },
        )
        told["stores"] = [sorted(fs.find(BUCKET)) for fs in stores]
        told["disks"] = sorted(str(path.relative_to(root)) for f in (shared, apart) for path in f.rglob("*"))
        told["urls"] = [store(one)["AWS_ENDPOINT_URL"], store(two)["AWS_ENDPOINT_URL"]]
        python = str(bare / "bin" / "python")
        cluster.add_node(env={"PYTHONPATH": ""}, prefix=(python,))
        told |= drive(
            {"name": "bare", **at, "places": {"shared": [[f"{shared}/src/a.tar"], f"{shared}/out"]}}
        )
        yield told


def test_a_clusters_wish_for_a_token_is_found_out(seen):
    assert seen["travels"]["notes"][0].startswith("joining the Ray cluster at 127.0.0.1:")
    assert not any("warning: the Ray cluster" in line for line in seen["travels"]["notes"])
    assert seen["travels"]["mode after"] is None


def test_settings_of_the_store_travel_to_every_node_and_keys_to_none(seen):
    found = seen["travels"]["seen"]
    assert len(found) == 2
    assert {endpoint for endpoint, _, _ in found.values()} == {seen["urls"][0]}
    assert {key for _, key, _ in found.values()} == {"of the nodes"}
    assert {mode for _, _, mode in found.values()} == {"token"}


def test_a_node_with_another_store_in_its_environment_gets_that_of_the_command(seen):
    """Once such a node wrote its rows to its own store."""
    assert seen["travels"]["s3"] == "good"


def test_in_a_job_the_settings_of_the_entrypoint_reach_every_node(seen):
    found = seen["in a job"]["seen"]
    assert {endpoint for endpoint, _, _ in found.values()} == {seen["urls"][0]}


def test_a_node_that_asks_another_store_is_named_with_both(seen):
    line = seen["by a file"]["s3"]
    assert socket.gethostname() in line
    assert f"endpoint {seen['urls'][1]} there, {seen['urls'][0]} here" in line


def test_folders_that_all_nodes_share_are_good(seen):
    assert seen["travels"]["shared"] == "good"


@pytest.mark.parametrize("what", ["source", "output"])
def test_a_folder_that_one_node_does_not_share_is_refused_with_its_name(seen, what):
    line = seen["travels"][f"{what} apart"]
    assert line.startswith("node ") and socket.gethostname() in line
    assert "it is not there: mount the same folder on every node, or name a store such as s3://" in line


def test_a_node_without_the_package_is_named_with_the_cure(seen):
    line = seen["bare"]["shared"]
    assert "lacks wordsworth: install wordsworth" in line and "`wordsworth submit` bring it" in line


def test_asking_leaves_nothing_behind(seen):
    assert seen["stores"] == [[f"{BUCKET}/src/a.tar"]] * 2
    assert seen["disks"] == ["apart/src", "apart/src/a.tar", "shared/src", "shared/src/a.tar"]


def test_a_whole_run_lands_in_the_store_of_the_command_where_the_nodes_name_another(wordsworth, small_model):
    import io

    from PIL import Image

    with servers.moto() as one, servers.moto() as two:
        ours, theirs = fill(one), fill(two)
        for number in range(6):
            image = io.BytesIO()
            Image.new("RGB", (40, 40), (number * 30, 0, 0)).save(image, "JPEG")
            ours.pipe_file(f"{BUCKET}/images/{number}.jpg", image.getvalue())
        with ray_cluster(nodes=[{}], token=TOKEN, env=store(two)) as cluster:
            places = [f"s3://{BUCKET}/images", "--output", f"s3://{BUCKET}/out", "--address", cluster.address]
            done = wordsworth("label", *places, "--model", small_model, env=cluster.env | store(one))
        assert done.returncode == 0, done.stderr
        assert f"{BUCKET}/out/_run/summary.json" in ours.find(f"{BUCKET}/out")
        assert sorted(theirs.find(BUCKET)) == [f"{BUCKET}/src/a.tar"]
