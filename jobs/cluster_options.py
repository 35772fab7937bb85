"""Declare the options that say which Ray a command works on. Importing this imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter, validators

from wordsworth.jobs.options import Flag
from wordsworth.pipeline.cluster.env_file import refuse_untaken_env_file, take_env_file
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.errors import UserError

CLUSTER = Group("Cluster", sort_key=4)
POSITIVE = validators.Number(gt=0)


@Parameter(name="*", group=CLUSTER)
@dataclass
class ClusterOptions:
    """Say which Ray a command works on."""

    address: str | None = None
    """Address of a Ray cluster to join (or RAY_ADDRESS). Without it, a local Ray starts and stops with
    the command."""
    insecure: Annotated[bool, Flag] = False
    "Join a cluster that asks for no token without a warning."
    wait_for: Annotated[str, Parameter(show_default=False)] = ""
    "Wait until the cluster has these resources, and ask its autoscaler for them: GPU=8,CPU=64."
    wait_timeout: Annotated[float, Parameter(validator=POSITIVE)] = ClusterRequest.wait_timeout
    "Seconds to wait for nodes."
    env_file: str | None = None
    """File on every node with lines KEY=VALUE, which every process of the run takes into its environment: the
    keys of a store, for example."""

    @property
    def request(self) -> ClusterRequest:
        """Return what the command asks of a cluster, and take the variables of --env-file into this process.

        Raises:
            UserError: --wait-for is no list of resources, or --env-file cannot be read here.
        """
        if self.env_file:
            take_env_file(self.env_file)
        refuse_untaken_env_file()
        return ClusterRequest(**self._asked())

    def _asked(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "insecure": self.insecure,
            "wait_for": resources(self.wait_for),
            "wait_timeout": self.wait_timeout,
            "env_file": self.env_file,
        }


@Parameter(name="*", group=CLUSTER)
@dataclass
class WorkersOptions(ClusterOptions):
    """Say which Ray a training works on."""

    grace: Annotated[float, Parameter(validator=validators.Number(gte=0))] = ClusterRequest.grace
    "Seconds in which a training that is told to end (SIGTERM, Ctrl-C) saves a checkpoint."

    def _asked(self) -> dict[str, Any]:
        return super()._asked() | {"grace": self.grace}


@Parameter(name="*", group=CLUSTER)
@dataclass
class PoolOptions(ClusterOptions):
    """Say which Ray a run works on, and what it takes of it."""

    share: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))] = ClusterRequest.share
    "Share of the cluster that this run plans with: 0.5 leaves room for another one with 0.5."
    max_actors: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
    "Model actors, at most. Without it: as many as the cluster has room for."
    decode_on: Annotated[str, Parameter(show_default=False)] = ""
    """Labels of the nodes that list, read, decode and write: KEY=VALUE,KEY=VALUE, with values as in Ray's
    selectors (docs/cluster.md)."""
    predict_on: Annotated[str, Parameter(show_default=False)] = ""
    "Labels of the nodes that run the model, as for --decode-on."
    grace: Annotated[float, Parameter(validator=validators.Number(gte=0))] = ClusterRequest.grace
    "Seconds in which a run that is told to end (SIGTERM, Ctrl-C) finishes the files under way."

    def _asked(self) -> dict[str, Any]:
        return super()._asked() | {
            "share": self.share,
            "max_actors": self.max_actors,
            "decode_on": labels("--decode-on", self.decode_on),
            "predict_on": labels("--predict-on", self.predict_on),
            "grace": self.grace,
        }


def resources(text: str) -> dict[str, float]:
    """Return the amounts of a list such as GPU=8,CPU=64, by Ray's name of the resource.

    Raises:
        UserError: it is no such list.
    """
    amounts = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([^=\s]+)\s*=\s*(\d+(?:\.\d+)?)", part)
        if not match or float(match[2]) <= 0:
            raise UserError(f"--wait-for {text}: give resources such as GPU=8,CPU=64", exit_code=2)
        amounts[match[1]] = float(match[2])
    return amounts


def labels(option: str, text: str) -> dict[str, str]:
    """Return the labels of a list such as KEY=VALUE,KEY=VALUE.

    Raises:
        UserError: it is no such list.
    """
    found = {}
    parts = re.split(r",(?![^(]*\))", text)  # the commas of in(value, value) part nothing
    for part in filter(None, (part.strip() for part in parts)):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not (key and separator and value):
            raise UserError(f"{option} {text}: give labels of nodes, such as pool=decode", exit_code=2)
        found[key] = value
    return found
