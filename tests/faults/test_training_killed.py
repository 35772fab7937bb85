"""Kill a machine under a training: the training continues on another machine, to the same weights."""

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.faults.machines import machines
from tests.support.trainings import write_classes
from wordsworth.vit_model.model_folder import load_folder

SIZE = [
    "--width",
    "128",
    "--depth",
    "4",
    "--heads",
    "4",
    "--patch-size",
    "8",
    "--image-size",
    "64",
    "--batch-size",
    "32",
]


@pytest.mark.long  # a killed worker and a killed driver: test_training_resumed, test_pretrain
def test_a_machine_that_dies_changes_no_bit_of_what_is_learnt(tmp_path):
    write_classes(tmp_path / "shards", shards=4, images=48)
    command = [
        sys.executable,
        "-m",
        "wordsworth",
        "pretrain",
        str(tmp_path / "shards"),
        *SIZE,
        "--epochs",
        "60",
        "--save-every",
        "4",
    ]

    def start(name: str, cluster) -> subprocess.Popen:
        with open(tmp_path / f"{name}.log", "w") as log:
            arguments = [*command, "--output", str(tmp_path / name), "--address", cluster.address]
            return subprocess.Popen(arguments, stdout=log, stderr=log, env=os.environ | cluster.env)

    with machines(nodes=2, num_cpus=3, memory=3 << 30, object_store_memory=200 << 20) as cluster:
        whole = start("whole", cluster)
        assert whole.wait(timeout=300) == 0, (tmp_path / "whole.log").read_text()
        again, end = start("again", cluster), time.monotonic() + 120
        while len(list((tmp_path / "again" / "_train").glob("step-*"))) < 2 and time.monotonic() < end:
            assert again.poll() is None, (tmp_path / "again.log").read_text()
            time.sleep(0.05)
        trained = cluster.find("RayTrainWorker")
        with_it = [
            node
            for node in cluster.nodes
            if trained.pid in {process.pid for process in cluster.machine(node)}
        ]
        for node in with_it or cluster.nodes[:1]:
            cluster.kill_node(node)
        if not with_it:  # it trained beside the driver
            trained.kill()
        assert again.wait(timeout=300) == 0, (tmp_path / "again.log").read_text()
    assert "1 worker goes on from step" in (tmp_path / "again.log").read_text()
    one, other = (load_folder(tmp_path / name).state for name in ("whole", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
