"""Define what a command asks of a cluster. Imports nothing heavy: options read defaults here."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ClusterRequest:
    """Hold which Ray a command works on, and what it takes of it. No field decides a row.

    Attributes:
        address: of the cluster to join; None takes RAY_ADDRESS, or starts a local Ray.
        insecure: join a cluster that asks for no token without a warning.
        wait_for: resources to wait for before the run is planned, by Ray's names, such as {"GPU": 8}.
        wait_timeout: seconds to wait for them.
        env_file: file on every node whose lines KEY=VALUE every process of the run takes into its
            environment; None for none.
        share: share of the cluster that this run plans with; above 0, 1 at most.
        max_actors: model actors at most; None for as many as fit.
        decode_on: labels of the nodes that list, read, decode and write; {} for any node.
        predict_on: labels of the nodes that run the model; {} for any node.
        grace: seconds in which a command that is told to end finishes the units in flight.
    """

    address: str | None = None
    insecure: bool = False
    wait_for: Mapping[str, float] = field(default_factory=dict)
    wait_timeout: float = 600.0
    env_file: str | None = None
    share: float = 1.0
    max_actors: int | None = None
    decode_on: Mapping[str, str] = field(default_factory=dict)
    predict_on: Mapping[str, str] = field(default_factory=dict)
    grace: float = 30.0
