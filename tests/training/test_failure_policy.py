"""Name a lost worker in the one line that the user reads, and tell which errors end a training."""

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError

from tests.support.ray_cluster import free_ports
from wordsworth.pipeline.cluster.ray_internals.training import check_connections, interface_of
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.training.failure_policy import FailureJudge, failure_note


class Channel:
    """Keep the lines that are sent."""

    def __init__(self):
        self.lines = []

    def post(self, news):
        self.lines.append(news.message)


def judged(error: Exception) -> tuple[bool, list[str]]:
    channel = Channel()
    return FailureJudge(channel)(error), channel.lines


def test_an_error_for_the_user_is_final_and_needs_no_line():
    error = UserExceptionWithTraceback(UserError("--batch-size is too large"), "traceback")
    assert judged(WorkerGroupError("", {0: error})) == (True, [])


def test_a_lost_worker_is_named_and_not_the_others_who_miss_it():
    lost = RayActorError(error_msg="The actor died.\nThe actor died because its node has died. Node Id: a1")
    missed = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "traceback")
    final, lines = judged(WorkerGroupError("", {0: missed, 1: lost}))
    assert not final
    assert lines == [
        "lost: worker 1 (The actor died because its node has died. Node Id: a1): "
        "all start again from the last checkpoint"
    ]


def test_a_worker_that_misses_another_is_not_called_the_lost_one():
    """The error of the worker that lives comes before Ray knows that the other is gone."""
    missed = UserExceptionWithTraceback(RuntimeError("[pair.cc:545] Connection reset by peer. This"), "")
    note = failure_note(WorkerGroupError("", {1: missed}))
    assert note.startswith(
        "lost: a worker or its node, which worker 1 misses ([pair.cc:545] Connection reset"
    )


def test_a_store_that_fails_is_named_in_one_line():
    failed = UserExceptionWithTraceback(OSError("s3://b/1.tar could not be read: reset\nmore"), "traceback")
    note = failure_note(WorkerGroupError("", {0: failed}))
    assert note.startswith("failed: worker 0 (s3://b/1.tar could not be read: reset)") and "\n" not in note


def test_a_cluster_without_room_is_waited_for_with_a_line():
    final, lines = judged(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert (final, lines) == (False, ["the cluster has no room for the workers now: waiting for nodes"])


class Workers:
    """Run what workers are asked to, here."""

    def __init__(self, port: int | None = None):
        self.port = port  # that the first worker says; None for the true one

    def execute_single(self, rank, call):
        address, port = call()
        return address, self.port or port

    def execute(self, call, *arguments):
        return [call(*arguments)]


@pytest.mark.ray
def test_nodes_that_cannot_reach_each_other_are_named_before_anybody_waits(local_ray):
    check_connections(Workers())
    (closed,) = free_ports(1)
    with pytest.raises(UserError, match=rf"node 127.0.0.1 cannot reach node 127.0.0.1 at port {closed}") as e:
        check_connections(Workers(closed))
    assert judged(ControllerError(e.value)) == (True, [])


def test_the_interface_is_that_of_the_nodes_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
