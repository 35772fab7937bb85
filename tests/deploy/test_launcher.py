"""Hold the cluster files of deploy/ray against the schema of Ray's own launcher."""

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy import manifests
from tests.deploy.manifests import launcher

LAUNCHERS = pytest.mark.parametrize("name", manifests.LAUNCHERS)


@LAUNCHERS
def test_rays_launcher_takes_the_file(name):
    config = prepare_config(launcher(name))
    validate_config(config)
    assert config["provider"]["type"] == name


def test_a_field_that_the_launcher_does_not_know_is_seen():
    config = prepare_config(launcher("aws"))
    config["available_node_types"]["decode"]["max_worker"] = 1
    with pytest.raises(Exception, match="max_worker"):
        validate_config(config)


@LAUNCHERS
def test_the_head_does_no_work_and_workers_start_from_zero(name):
    config = launcher(name)
    head, decode, predict = (config["available_node_types"][one] for one in ("head", "decode", "predict"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in line for line in config["head_start_ray_commands"])
    assert "GPU" not in decode["resources"] and predict["resources"]["GPU"] == 1
    for one, pool in ((decode, "decode"), (predict, "predict")):
        assert one["min_workers"] == 0 < one["max_workers"]
        assert one["labels"] == {"pool": pool}
    assert config["max_workers"] == decode["max_workers"] + predict["max_workers"]


@LAUNCHERS
def test_workers_are_spot_machines_and_the_head_is_not(name):
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    types = launcher(name)["available_node_types"]
    assert [one for one in types if spot in types[one]["node_config"]] == ["decode", "predict"]


@LAUNCHERS
def test_every_node_asks_for_the_same_token_and_none_is_in_the_file(name):
    config = launcher(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in line and ".bashrc" in line for line in config["setup_commands"])
    text = (manifests.DEPLOY / "ray" / f"{name}.yaml").read_text()
    assert "RAY_AUTH_TOKEN" not in text and "SECRET" not in text


@LAUNCHERS
def test_the_job_server_is_not_on_the_network(name):
    start = launcher(name)["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start


@LAUNCHERS
def test_nodes_install_the_lock(name):
    assert "cd ~/wordsworth && make setup" in launcher(name)["setup_commands"]
