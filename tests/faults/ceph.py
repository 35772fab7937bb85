"""Run a Ceph of one machine with its S3 gateway: a real object store on loopback, which can be killed."""

import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

KEY, SECRET = "AKTEST", "SKTESTSECRET"
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
# What each member of the cluster may do, in the words of ceph-authtool.
CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.rgw.a": {"mon": "allow rw", "osd": "allow rwx", "mgr": "allow rw"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
}
CONFIG = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{old_mon_port}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/keyring
mon_data = {folder}/mon
osd_data = {folder}/osd
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
log_file = {folder}/log/$name.log
pid_file = {folder}/run/$name.pid
osd_objectstore = {objects}
memstore_device_bytes = 4294967296
bluestore_block_size = 4294967296
osd_memory_target = 939524096
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 1
# Every pool is a round of the monitor; by default each round waits for a second.
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_dns_name = localhost
rgw_enable_apis = s3, admin
"""


class Ceph:
    """Hold a monitor, one object server and the gateway, each a child of this process.

    Attributes:
        port: of the gateway, on 127.0.0.1.
    """

    def __init__(self, folder: Path, ports: tuple[int, int, int], objects: str = "bluestore"):
        """Start a new store.

        Args:
            folder: an empty folder of the store's own.
            ports: of the gateway and two of the monitor.
            objects: "bluestore" keeps on disk what it acknowledged; "memstore" forgets when it is killed.
        """
        self.folder, self.port = folder, ports[0]
        self.daemons: dict[str, subprocess.Popen] = {}
        for name in ("mon", "osd", "run", "log"):
            (folder / name).mkdir()
        self.config, fsid = folder / "ceph.conf", str(uuid.uuid4())
        names = {"mon_port": ports[1], "old_mon_port": ports[2], "folder": folder, "objects": objects}
        self.config.write_text(CONFIG.format(fsid=fsid, port=self.port, **names))
        try:
            self._make(fsid, ports)
            self._start("radosgw", "-n", "client.rgw.a")
            self._wait_for_gateway()
        except BaseException:
            self.kill()
            raise

    def _make(self, fsid: str, ports: tuple[int, int, int]) -> None:
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        _run("ceph-authtool", "--create-keyring", keyring)
        for name, capabilities in CAPABILITIES.items():
            given = [word for kind, what in capabilities.items() for word in ("--cap", kind, what)]
            _run("ceph-authtool", keyring, "--gen-key", "--name", name, *given)
        place = f"[v2:127.0.0.1:{ports[1]},v1:127.0.0.1:{ports[2]}]"
        _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", place, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._start("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._start("ceph-osd", "-i", "0")
        self.add_user(KEY, SECRET)

    def add_user(self, key: str, secret: str) -> None:
        """Make a user of the store."""
        name = f"user-{key.lower()}"
        self._run(
            *("radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}"),
            *(f"--access-key={key}", f"--secret-key={secret}"),
        )

    def add_key(self, key: str, secret: str, user: str = KEY) -> None:
        """Give a user another key beside those that it has.

        Args:
            key, secret: the new key.
            user: a key of the user.
        """
        added = ("--key-type=s3", f"--access-key={key}", f"--secret-key={secret}")
        self._run("radosgw-admin", "key", "create", f"--uid=user-{user.lower()}", *added)

    def kill(self) -> None:
        """Send SIGKILL to all daemons at once, as a machine without power ends them."""
        for daemon in self.daemons.values():
            daemon.kill()
        for daemon in self.daemons.values():
            daemon.wait()

    def start_again(self) -> None:
        """Start the daemons on the data that is there, on the same ports. Return when the store answers."""
        self._start("ceph-mon", "-i", "a")
        self._start("ceph-osd", "-i", "0")
        self._start("radosgw", "-n", "client.rgw.a")
        self._wait_for_gateway()

    def rss_bytes(self) -> dict[str, int]:
        """Return the resident memory of each daemon."""
        import psutil

        return {name: psutil.Process(daemon.pid).memory_info().rss for name, daemon in self.daemons.items()}

    def _start(self, program: str, *arguments: str) -> None:
        with open(self.folder / "log" / f"{program}.out", "ab") as log:
            command = [program, *arguments, "-c", str(self.config), "-f"]
            # A test that is killed leaves no daemon behind.
            command = ["setpriv", "--pdeathsig", "KILL", *command] if shutil.which("setpriv") else command
            self.daemons[program] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _run(self, *command: str) -> str:
        return _run(*command, "-c", str(self.config))

    def _wait_for_gateway(self, patience_s: float = 120) -> None:
        until = time.monotonic() + patience_s
        while True:
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    said = (self.folder / "log" / f"{name}.out").read_text("utf-8", "replace")
                    raise RuntimeError(f"{name} ended with {daemon.returncode}: {said[-500:]}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                    client.settimeout(5)
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    if client.recv(12).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                pass
            if time.monotonic() > until:
                raise RuntimeError(f"Ceph's gateway does not answer within {patience_s} s")
            time.sleep(0.05)


def missing_programs() -> list[str]:
    """Return the programs of Ceph that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def _run(*command: str, patience_s: float = 90) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=patience_s, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
