"""Stand in for Slurm's `srun` and `scontrol`: every node of a job is this machine.

`scontrol show hostnames LIST` prints a name for each node, `scontrol requeue JOB` writes the job down. `srun`
starts the command once for each node, forwards SIGTERM, and ends with the last of them. It gives each
`ray start` the ports that a machine of its own would have free, and sizes that fit here.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.ray_cluster import free_ports

PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
)
SIZES = ("--num-cpus=2", f"--memory={1700 << 20}", f"--object-store-memory={100 << 20}")
NAME = "127.0.0.1"


def install(folder: Path) -> None:
    """Write both programs into a folder for PATH."""
    folder.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.deploy.fake_slurm {name} "$@"\n')
        program.chmod(0o755)


def write_down(line: str) -> None:
    with open(os.environ["FAKE_SLURM_LOG"], "a") as log:
        log.write(line + "\n")


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print(*[NAME] * int(os.environ["SLURM_JOB_NUM_NODES"]), sep="\n")
    else:
        write_down(" ".join(["scontrol", *arguments]))
    return 0


def srun(arguments: list[str]) -> int:
    given = [one for one in arguments if one.startswith("--")]
    first = next(place for place, one in enumerate(arguments) if not one.startswith("--"))
    command, options = arguments[first:], dict(one.split("=", 1) for one in given[:first] if "=" in one)
    write_down(" ".join(" ".join(["srun", *arguments]).split()))
    steps = []
    for _ in range(int(options["--ntasks"])):
        steps.append(subprocess.Popen(on_this_machine(command), start_new_session=True))
        time.sleep(1 if steps else 0)  # two raylets of one second share a name on one machine

    def forward(number: int, frame: object) -> None:
        for step in steps:
            step.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward)
    return max(step.wait() for step in steps)


def on_this_machine(command: list[str]) -> list[str]:
    if " ray start " not in " ".join(command):
        return command
    ports = [f"--{name}={port}" for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)]
    if "--head" in command:
        dashboard, client = free_ports(2)
        ports += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    return [*command, f"--node-ip-address={NAME}", *SIZES, *ports]


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
