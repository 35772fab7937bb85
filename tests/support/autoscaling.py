"""Start a real Ray cluster whose autoscaler adds nodes on this machine: Ray's own provider of fake nodes.

`ray.cluster_utils.AutoscalingCluster` begins with `ray stop --force`, which would end every other Ray of this
machine, and reads a file that Ray's wheel lacks. So this starts the same head, with the same provider, by
`ray start`, and ends it by its process ids: the autoscaler's nodes are children of the head's processes.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.ray_cluster import TOKEN, RayCluster, free_ports

HEAD_ID = "f" * 51 + "00000"  # the id that Ray's provider of fake nodes gives the head
# How each version of the autoscaler is told of the provider, by whether it is the second one.
PROVIDER = {
    False: {"type": "fake_multinode", "use_node_id_as_ip": True},
    True: {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    },
}
UPDATE_S = "1"  # seconds between two looks of the autoscaler
# Keys of a cluster's YAML, in which the autoscaler wants a list although no node is ever set up by commands.
NO_COMMANDS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


class AutoscalingCluster(RayCluster):
    """Hold a head whose autoscaler starts nodes when something waits for them."""

    def start_scaling_head(
        self, node_types: dict[str, dict[str, Any]], idle_minutes: float, v2: bool, **options: Any
    ) -> None:
        """Start the head.

        Args:
            node_types: for each type its "resources" and its "max_workers", as in a cluster's YAML.
            idle_minutes: minutes after which an idle node is taken away.
            v2: whether the autoscaler is the second one, as on KubeRay.
            options: of `ray start` for the head.
        """
        types = {name: {"node_config": {}, "min_workers": 0} | kind for name, kind in node_types.items()}
        head = {"resources": {"CPU": options.get("num_cpus", 0)}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "fake",
            "max_workers": 8,
            "idle_timeout_minutes": idle_minutes,
            "upscaling_speed": 100.0,
            "provider": {"head_node_id": HEAD_ID, "launch_multiple": True} | PROVIDER[v2],
            "available_node_types": types | {"ray.head.default": head},
            "head_node_type": "ray.head.default",
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in NO_COMMANDS},
            "file_mounts_sync_continuously": False,
        }
        self.env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": UPDATE_S}
        if v2:
            self.env |= {
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            }
        path = self.folder / "autoscaling.json"
        (port,) = free_ports(1)
        config["provider"]["gcs_address"] = f"127.0.0.1:{port}"
        path.write_text(json.dumps(config))
        self.start_head(autoscaling_config=path, port=port, **options)


@contextlib.contextmanager
def autoscaling_cluster(
    node_types: dict[str, dict[str, Any]],
    *,
    idle_minutes: float = 5.0,
    v2: bool = False,
    head: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[AutoscalingCluster]:
    """Give a block a cluster that grows.

    Args:
        node_types, idle_minutes, v2: as for `start_scaling_head`.
        head: options of `ray start` for the head.
        env: environment of every node and client.
    """
    cluster = AutoscalingCluster(TOKEN, env)
    try:
        cluster.start_scaling_head(node_types, idle_minutes, v2, **({"num_cpus": 0} | (head or {})))
        yield cluster
    finally:
        cluster.close()
