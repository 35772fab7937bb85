"""joining: a cluster that cannot be joined is refused in one line, within seconds, and the line says what to
do."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from ray.exceptions import AuthenticationError, RpcError

from tests.support.ray_cluster import free_ports
from wordsworth.pipeline.cluster import address, joining, ray_internals, tokens
from wordsworth.pipeline.cluster.ray_internals import Head, Traces
from wordsworth.pipeline.cluster.request import ClusterRequest
from wordsworth.pipeline.cluster.travelling import TRAVELLING, travelling_settings
from wordsworth.pipeline.errors import UserError

NAMES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", joining.JOB_CONFIG)
GOOD = Head(ray_version=ray.__version__, python_version=platform.python_version(), node_ids=frozenset({"n1"}))


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has joined nothing yet, and an environment that says nothing of Ray."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray looks for a token
    monkeypatch.setattr(joining, "_noted", set())
    monkeypatch.setattr(joining, "_has_ray", lambda: False)


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Give the address of a server that answers everybody alike; None says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def refusal(given: str, notes: list[str] | None = None, **asked) -> UserError:
    with pytest.raises(UserError) as caught:
        joining.reach(ClusterRequest(address=given, **asked), (notes if notes is not None else []).append)
    assert "\n" not in str(caught.value)
    return caught.value


# ---- the address ----


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("ray://head:10001", "wordsworth submit --address http://head:8265 -- ..."),
        ("http://head:8265", "wordsworth submit --address http://head:8265 -- ..."),
        ("https://me:secret@head/ray?token=secret", "wordsworth submit --address https://head/ray -- ..."),
        ("redis://head:6379", "is none of Ray's"),
    ],
)
def test_an_address_of_ray_client_or_of_the_job_server_is_answered_with_submit(given, advice):
    error = refusal(given)
    assert error.exit_code == 2 and advice in str(error) and "secret" not in str(error)


def test_a_job_servers_address_in_the_environment_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS http://head:8265 is the job server's: submit a job"):
        joining.reach(ClusterRequest(), print)


@pytest.mark.parametrize("given", ["head", "head:", ":6379", "head:port", "a b:c:1", "::1", "[::1]"])
def test_an_address_without_host_and_port_is_wrong_usage(given):
    error = refusal(given)
    assert error.exit_code == 2 and "is no HOST:PORT" in str(error)


@pytest.mark.parametrize(
    ("given", "host"), [("head:6379", "head"), ("[::1]:6379", "::1"), ("10.0.0.7:1", "10.0.0.7")]
)
def test_host_and_port_are_found_in_an_address(given, host):
    assert address.find_address(given, "--address") == (given, "")
    assert address._split(given)[0] == host


@pytest.mark.parametrize("given", [None, "", "local"])
def test_no_address_and_local_start_a_ray_of_their_own(given):
    assert address.address_of(ClusterRequest(address=given)) is None
    assert joining.reach(ClusterRequest(address=given), pytest.fail) is None


def test_a_process_that_has_a_ray_reaches_for_no_other(monkeypatch):
    monkeypatch.setattr(joining, "_has_ray", lambda: True)
    assert joining.reach(ClusterRequest(address="127.0.0.1:1"), pytest.fail) is None


@pytest.mark.parametrize(
    ("host", "reason"),
    [("127.0.0.1", "Connection refused"), ("nobody.invalid", "not known|resolution|no answer")],
)
def test_a_dead_address_is_refused_within_seconds(host, reason):
    notes: list[str] = []
    given = f"{host}:{free_ports(1)[0]}"
    began = time.monotonic()
    error = refusal(given, notes)
    assert time.monotonic() - began < address.REACH_S + 2
    assert notes == [f"joining the Ray cluster at {given}"]
    assert re.search(rf"cannot reach the Ray cluster at {given} \(.*({reason}).*\): is Ray's", str(error))


def test_a_name_that_nobody_looks_up_in_time_is_refused(monkeypatch):
    monkeypatch.setattr(address, "REACH_S", 0.2)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(1))
    assert "(no answer within 0 s): is Ray's head running" in str(refusal("head:6379"))


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "is a web server, such as Ray's dashboard or job server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks another protocol"),
        (None, "says nothing for 0 s"),
    ],
)
def test_what_is_no_head_is_refused_before_ray_waits_for_it(monkeypatch, answer, what):
    monkeypatch.setattr(address, "REACH_S", 0.3)
    with listening(answer) as given:
        assert f"what listens at {given} {what}, and is no head of a Ray cluster" in str(refusal(given))


def traces(monkeypatch, **found) -> None:
    told = Traces(note="/RAY/ray_current_cluster", **found)
    monkeypatch.setattr(ray_internals, "traces_of_ray", lambda: told)


def test_a_stale_note_of_a_ray_that_is_gone_is_named(monkeypatch):
    gone = f"127.0.0.1:{free_ports(1)[0]}"
    traces(monkeypatch, noted=gone)
    line = str(refusal("auto"))
    assert line.startswith(f"cannot reach the Ray cluster at {gone}, which /RAY/ray_current_cluster names")
    assert line.endswith(
        "that Ray is gone: start Ray, or give HOST:PORT of another, or remove /RAY/ray_current_cluster"
    )


def test_auto_without_any_ray_says_so(monkeypatch):
    traces(monkeypatch)
    assert "--address auto: no Ray runs on this machine" in str(refusal("auto"))


def test_auto_takes_what_ray_takes(monkeypatch):
    traces(monkeypatch, heads=["a:1"], noted="b:2")
    assert address.find_address("auto", "--address") == ("a:1", "")
    traces(monkeypatch, heads=["a:1", "c:3"], noted="b:2")
    assert address.find_address("auto", "--address") == ("b:2", "/RAY/ray_current_cluster")
    monkeypatch.setenv("RAY_ADDRESS", "d:4")
    assert address.find_address("auto", "--address") == ("d:4", "")


# ---- the token ----


@pytest.fixture
def cluster(monkeypatch):
    """Stand for a head that this process reaches: set `token` to what it asks for."""

    class Cluster:
        def __init__(self):
            self.token: str | None = None
            self.head = GOOD
            self.asked: list[str] = []

        def ask(self, _, mode):
            self.asked.append(mode)
            if self.token is not None and (mode != "token" or shown_token() != self.token):
                raise AuthenticationError("RPC error: InvalidAuthToken")
            return self.head

    def shown_token() -> str | None:
        if "RAY_AUTH_TOKEN" in os.environ:
            return os.environ["RAY_AUTH_TOKEN"]
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
        return open(path).read().strip()

    made = Cluster()
    monkeypatch.setattr(ray_internals, "ask_head", made.ask)
    monkeypatch.setattr(joining, "check_head", lambda *_: None)
    monkeypatch.setattr(ray_internals, "nodes_of_this_machine", lambda: {"n1"})
    return made


def test_a_cluster_without_a_token_is_joined_with_one_warning(cluster):
    notes: list[str] = []
    for _ in range(2):  # a command asks before it loads the model, and again when it joins
        reached = joining.reach(ClusterRequest(address="h:1"), notes.append)
    assert reached.mode == "disabled"
    assert len(notes) == 2 and notes[0] == "joining the Ray cluster at h:1"
    assert notes[1].startswith("warning: the Ray cluster at h:1 asks for no token")


def test_insecure_silences_the_warning(cluster):
    notes: list[str] = []
    joining.reach(ClusterRequest(address="h:1", insecure=True), notes.append)
    assert notes == ["joining the Ray cluster at h:1"]


def test_a_token_that_is_there_is_not_shown_to_a_cluster_that_asks_for_none(cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    assert joining.reach(ClusterRequest(address="h:1"), print).mode == "disabled"
    assert cluster.asked == ["disabled"]


@pytest.mark.parametrize("place", ["variable", "path", "home"])
@pytest.mark.parametrize("said", [None, "token"])
def test_a_cluster_that_asks_for_a_token_gets_it_from_where_ray_looks(
    cluster, monkeypatch, tmp_path, place, said
):
    cluster.token = "t"
    if said:
        monkeypatch.setenv("RAY_AUTH_MODE", said)
    file = tmp_path / ".ray" / "auth_token" if place == "home" else tmp_path / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_text("t\n")
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    if place == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert joining.reach(ClusterRequest(address="h:1"), print).mode == "token"


def test_a_token_that_is_missing_is_asked_for_with_the_two_ways(cluster):
    cluster.token = "t"
    line = str(refusal("h:1"))
    assert line.startswith(
        "the Ray cluster at h:1 asks for a token, and there is none here: set RAY_AUTH_TOKEN,"
    )
    assert "RAY_AUTH_TOKEN_PATH" in line and "ray get-auth-token" in line


def test_a_wrong_token_is_named_by_its_place_and_not_shown(cluster, monkeypatch):
    cluster.token = "t"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-secret")
    line = str(refusal("h:1"))
    assert "refuses the token of RAY_AUTH_TOKEN" in line and "wrong-secret" not in line


@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), ("", "is empty")])
def test_a_token_file_that_is_missing_or_empty_is_named(cluster, monkeypatch, tmp_path, text, said):
    cluster.token = "t"
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert str(file) in str(refusal("h:1")) and said in str(refusal("h:1"))


def test_what_the_environment_says_of_tokens_comes_first(cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "asks for no token, and RAY_AUTH_MODE=token is set here" in str(refusal("h:1"))
    cluster.token = "t"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "asks for a token, and RAY_AUTH_MODE=disabled is set here" in str(refusal("h:1"))
    assert cluster.asked == ["disabled", "disabled"]


def test_a_port_of_ray_client_or_of_a_node_is_no_head(cluster, monkeypatch):
    def ask(*_):
        raise RpcError("RPC error: Method not found!", rpc_code=12)

    monkeypatch.setattr(ray_internals, "ask_head", ask)
    assert "h:1 does not answer as a head of a Ray cluster (Method not found!)" in str(refusal("h:1"))


def test_reach_leaves_the_environment_as_it_was(cluster):
    before = dict(os.environ)
    joining.reach(ClusterRequest(address="h:1"), print)
    assert dict(os.environ) == before


@pytest.mark.parametrize("before", [None, "disabled"])
def test_a_block_in_a_mode_leaves_the_variable_as_it_was(monkeypatch, before):
    if before:
        monkeypatch.setenv("RAY_AUTH_MODE", before)
    with ray_internals.auth_mode("token"):
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ.get("RAY_AUTH_MODE") == before


@pytest.mark.parametrize(
    ("env", "mode"),
    [({}, "disabled"), ({"RAY_AUTH_TOKEN": "t"}, "token"), ({"RAY_AUTH_MODE": "token"}, "token")],
)
def test_an_unknown_ray_is_joined_as_the_environment_says(monkeypatch, env, mode):
    monkeypatch.setenv("WORDSWORTH_STOCK_RAY", "1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert ray_internals.ask_head("h:1", "disabled") is None
    assert tokens.ask("h:1") == (mode, None)


# ---- versions, machine, job ----

MINE = platform.python_version()
PATCH = f"{MINE.rpartition('.')[0]}.99"


@pytest.mark.parametrize(("ray_version", "python"), [("2.9.3", MINE), (ray.__version__, PATCH)])
def test_another_ray_or_patch_of_python_is_one_line_with_both(cluster, ray_version, python):
    cluster.head = Head(ray_version=ray_version, python_version=python, node_ids=frozenset({"n1"}))
    line = str(refusal("h:1"))
    assert f"at h:1 was started with Ray {ray_version} and Python {python}, and this process on" in line
    assert f"{socket.gethostname()} has Ray {ray.__version__} and Python {MINE}" in line


def test_another_patch_of_python_is_joined_where_ray_was_told_so(cluster, monkeypatch):
    cluster.head = Head(ray_version=ray.__version__, python_version=PATCH, node_ids=frozenset({"n1"}))
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    assert joining.reach(ClusterRequest(address="h:1"), print)


def test_a_machine_that_is_no_node_is_told_to_submit(cluster, monkeypatch):
    monkeypatch.setattr(ray_internals, "nodes_of_this_machine", lambda: {"of another cluster"})
    monkeypatch.setattr(joining, "NODE_S", 0.1)
    line = str(refusal("h:1"))
    assert line.startswith(
        f"this machine ({socket.gethostname()}) is no node of the Ray cluster at h:1: submit a job"
    )


def test_a_node_that_was_just_started_is_waited_for(cluster, monkeypatch):
    answers = iter([set(), {"n1"}])
    monkeypatch.setattr(ray_internals, "nodes_of_this_machine", lambda: next(answers))
    assert joining.reach(ClusterRequest(address="h:1"), print).address == "h:1"


def test_a_head_that_answers_before_its_own_node_is_there_is_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(joining, "NODE_S", 0.0)
    monkeypatch.setattr(ray_internals, "begins_here", lambda *_: True)
    answers = iter([set(), set(), {"n1"}])
    monkeypatch.setattr(ray_internals, "nodes_of_this_machine", lambda: next(answers))
    notes: list[str] = []
    assert joining.reach(ClusterRequest(address="h:1", insecure=True), notes.append).address == "h:1"
    assert notes[1:] == ["the node of this machine is not known to the cluster yet: waits 180 s at most"]


def test_a_ray_of_this_machine_that_becomes_no_node_is_told_where_to_look(cluster, monkeypatch):
    monkeypatch.setattr(joining, "NODE_S", 0.0)
    monkeypatch.setattr(joining, "BEGUN_NODE_S", 0.1)
    monkeypatch.setattr(ray_internals, "begins_here", lambda *_: True)
    monkeypatch.setattr(ray_internals, "nodes_of_this_machine", lambda: {"of another cluster"})
    assert f"Ray runs on this machine ({socket.gethostname()}) and is no node" in str(refusal("h:1"))


@pytest.mark.parametrize(
    ("arguments", "is_local", "found"),
    [
        (["--gcs_server_port=7001"], True, True),
        (["--gcs_server_port=7001"], False, False),
        (["--gcs-address=h:7001"], False, True),
        (["--gcs-address=other:7001", "--gcs_server_port=70010"], True, False),
    ],
)
def test_processes_of_a_cluster_show_that_its_node_is_on_the_way(arguments, is_local, found):
    """A head is known by its port, where its address is this machine's; a node by the address of its head."""
    assert not ray_internals.begins_here("h:7001", is_local)
    code = "import sys; print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes) as process:
        process.stdout.readline()
        assert ray_internals.begins_here("h:7001", is_local) == found
        process.kill()


@pytest.mark.parametrize(
    ("host", "is_here"), [("127.0.0.1", True), ("192.0.2.1", False), ("x.invalid", False)]
)
def test_an_address_of_this_machine_is_told_from_others(host, is_here):
    assert address.is_of_this_machine(f"{host}:6379") == is_here


def join(cluster) -> dict:
    options = {}

    def init(**given):
        options.update(given, override=os.environ.get(joining.OVERRIDE), mode=os.environ["RAY_AUTH_MODE"])

    with joining.joined(ClusterRequest(address="h:1"), print, init):
        pass
    return options


def test_settings_of_stores_travel_and_secrets_do_not(cluster, monkeypatch):
    for name in TRAVELLING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "secret")
    assert join(cluster)["runtime_env"] == {"env_vars": {"AWS_ENDPOINT_URL": "http://store:9000"}}
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert "runtime_env" not in join(cluster)


def test_no_setting_that_travels_is_a_secret_by_its_name():
    words = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "CONNECTION", "SAS")
    assert [name for name in TRAVELLING if any(word in name for word in words)] == []


@pytest.mark.parametrize(
    "value", ["http://me:secret@store", "https://token@store", "https://store/?sig=secret"]
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(value):
    with pytest.raises(UserError) as caught:
        travelling_settings({"AWS_ENDPOINT_URL": value})
    assert str(caught.value).startswith("AWS_ENDPOINT_URL holds a user, a password or a signature")
    assert "secret" not in str(caught.value)


def test_the_settings_of_an_entrypoint_win_over_those_of_its_job(cluster, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    job = {"runtime_env": {"env_vars": {"AWS_DEFAULT_REGION": "us-east-1"}}}
    monkeypatch.setenv(joining.JOB_CONFIG, json.dumps(job))
    assert join(cluster)["override"] == "1"
    assert joining.OVERRIDE not in os.environ
    monkeypatch.setenv(joining.JOB_CONFIG, json.dumps({"runtime_env": {}}))
    assert join(cluster)["override"] is None


def test_what_ray_says_when_it_cannot_join_is_one_line(cluster):
    def init(**_):
        raise ConnectionError("the head is gone\nand more")

    with (
        pytest.raises(UserError, match=r"^cannot join the Ray cluster at h:1: the head is gone$"),
        joining.joined(ClusterRequest(address="h:1"), print, init),
    ):
        pytest.fail("it went on")
