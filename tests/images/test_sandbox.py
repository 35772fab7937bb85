"""sandbox: whatever a decoder does costs one row; the process that asked and the next images are safe."""

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import hostile
from tests.support.hostile import ordered
from tests.support.samples import encoded, photo, rows_of, units_of, write_tar
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.images import decoder_process, sandbox
from wordsworth.pipeline.images.codec import DecodeError
from wordsworth.pipeline.images.decode import DecodeSettings, crop_for_evaluation, decode_unit, open_image
from wordsworth.pipeline.images.limits import DecodeLimits
from wordsworth.pipeline.images.sandbox import Sandbox, SandboxSettings, process_sandbox
from wordsworth.vit_model.config import Preprocessing
from wordsworth.vit_model.patches import patchify

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the tests look into /proc")

HOSTILE = Path(hostile.__file__)
LIMITS = DecodeLimits(max_pixels=25_000_000)
SETTINGS = DecodeSettings(preprocessing=Preprocessing(), image_size=(32, 48), patch_size=8, limits=LIMITS)
JPEG = encoded(photo(0))
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def guarded(**changes) -> Sandbox:
    return Sandbox(SandboxSettings(**{"limits": LIMITS, "script": HOSTILE} | changes))


@pytest.fixture
def child():
    """A sandbox with a child that obeys orders."""
    made = guarded()
    yield made
    made.close()


@pytest.fixture
def hasty():
    """The same, without patience."""
    made = guarded(limits=replace(LIMITS, timeout_s=3.0), memory_bytes=128 << 20)
    yield made
    made.close()


def right(child: Sandbox, seed: int = 7) -> bool:
    data = encoded(photo(seed))
    return np.array_equal(np.asarray(child.decode(data)[0]), np.asarray(open_image(data, SETTINGS)))


def refusal(child: Sandbox, data: bytes) -> str:
    with pytest.raises(DecodeError) as error:
        child.decode(data)
    return f"{error.value.code}: {error.value}"


def status(pid: int, name: str, file: str = "status") -> str:
    (line,) = [line for line in Path(f"/proc/{pid}/{file}").read_text().splitlines() if line.startswith(name)]
    return line.removeprefix(name).strip(": \t")


def alive(pid: int) -> bool:
    try:
        return status(pid, "State")[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


# ---- what a decoder can do ------------------------------------------------------------------------

DEEDS = {
    "signal SIGSEGV": "decoder_crashed: the decoder ended with SIGSEGV",
    "signal SIGABRT": "decoder_crashed: the decoder ended with SIGABRT",
    "signal SIGKILL": "decoder_crashed: the decoder ended with SIGKILL, twice",
    "exit": "decoder_crashed: the decoder ended with exit code 7",
    "lie": "decoder_crashed: the decoder answered nonsense",
    "babble": "decoder_crashed: the decoder answered nonsense",
    "hang": "decoder_timeout: no pixels after 3 seconds",
    "half": "decoder_timeout: no pixels after 3 seconds",
    "allocate": "out_of_memory: there is no memory for the file",
}


@pytest.mark.slow
@pytest.mark.parametrize("deed", DEEDS)
def test_a_deed_of_the_decoder_costs_one_image_and_the_next_is_right(hasty, deed):
    assert right(hasty)
    assert refusal(hasty, ordered(JPEG, deed)) == DEEDS[deed]
    assert right(hasty)


def test_the_real_decoder_knows_no_orders():
    real = guarded(script=SandboxSettings.script)
    plain = np.asarray(open_image(JPEG, SETTINGS))
    assert all(np.array_equal(np.asarray(real.decode(ordered(JPEG, deed))[0]), plain) for deed in DEEDS)
    real.close()


@pytest.mark.slow
def test_a_decoder_that_closes_its_end_and_stays_is_ended(child):
    right(child)
    pid = child.pid
    assert refusal(child, ordered(JPEG, "deaf")).startswith("decoder_crashed")
    assert not alive(pid) and right(child)


@pytest.mark.slow
def test_in_a_unit_every_deed_is_one_row_and_every_other_row_is_right(hasty, tmp_path):
    deeds = [None, "signal SIGSEGV", None, "exit", "hang", None, "allocate", "lie", None]
    images = [encoded(photo(n, 60 + n, 50), ("JPEG", "PNG", "WEBP")[n % 3]) for n in range(len(deeds))]
    told = [data if deed is None else ordered(data, deed) for data, deed in zip(images, deeds, strict=True)]
    members = [(f"{n}.jpg", data) for n, data in enumerate(told)]
    (unit,) = units_of(write_tar(tmp_path / "a.tar", members), rows=20)
    unit = decode_unit(unit, SETTINGS, sandbox=hasty)
    codes = [
        None,
        "decoder_crashed",
        None,
        "decoder_crashed",
        "decoder_timeout",
        None,
        "out_of_memory",
        "decoder_crashed",
        None,
    ]
    assert [row["error"] for row in rows_of([unit])] == codes
    good = [data for data, deed in zip(images, deeds, strict=True) if deed is None]
    for patches, data in zip(unit.payload, good, strict=True):
        assert np.array_equal(
            patches,
            patchify(crop_for_evaluation(open_image(data, SETTINGS), SETTINGS.preprocessing, (32, 48)), 8),
        )


@pytest.mark.slow
def test_a_kill_from_outside_is_no_images_fault(child, tmp_path):
    right(child)
    os.kill(child.pid, signal.SIGKILL)  # between two images
    assert right(child)
    image, _ = child.decode(ordered(JPEG, f"kill_once {tmp_path / 'killed'}"))  # during one: decoded again
    assert (tmp_path / "killed").exists() and np.array_equal(
        np.asarray(image), np.asarray(open_image(JPEG, SETTINGS))
    )


@pytest.mark.slow
def test_a_child_that_reads_nothing_is_late_even_if_the_image_does_not_fit_the_pipe(hasty):
    right(hasty)
    os.kill(hasty.pid, signal.SIGSTOP)
    assert refusal(hasty, bytes(8 << 20)).startswith("decoder_timeout")
    assert right(hasty)


@pytest.mark.slow
def test_images_larger_than_the_pipe_arrive_whole(child):
    image = photo(3, 2000, 1200)
    data = encoded(image, "BMP") + bytes(9 << 20)
    assert np.array_equal(np.asarray(child.decode(data)[0]), np.asarray(image))


@pytest.mark.slow
def test_what_the_memory_limit_refuses_is_a_row(child):
    tight = guarded(memory_bytes=40 << 20)
    assert refusal(tight, encoded(photo(1).resize((4000, 3000)), "PNG", compress_level=1)).startswith(
        "out_of_memory"
    )
    assert right(tight)
    assert child.decode(encoded(photo(1).resize((4000, 3000)), "PNG", compress_level=1))[0].shape == (
        3000,
        4000,
        3,
    )
    tight.close()


# ---- the child as a process -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_child_knows_no_credentials_and_none_of_our_files(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        made = guarded(script=SandboxSettings.script)
        assert right(made)
        pid = made.pid
        environment = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if entry
        )
        assert set(environment) == {"LD_LIBRARY_PATH", *decoder_process.FIXED} and "hunter2" not in str(
            environment
        )
        assert "hunter2" not in Path(f"/proc/{pid}/cmdline").read_text()
        files = {os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
        assert files == {"pipe", "/dev/null", "/memfd"}
    libraries = Path(f"/proc/{pid}/maps").read_text()
    assert "_imaging" in libraries and not [
        name for name in ("libarrow", "libtorch", "_raylet") if name in libraries
    ]
    made.close()


@pytest.mark.slow
def test_the_child_alone_loads_the_decoder_of_heic(monkeypatch):
    image = photo(0, 1000, 800)
    data = encoded(image, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # this process cannot import it now
    made = guarded(script=SandboxSettings.script)
    pixels = made.decode(data)[0]
    made.close()
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 8


@pytest.mark.slow
def test_a_system_without_nameless_memory_uses_a_nameless_file(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    made = guarded()
    assert (
        right(made)
        and refusal(made, ordered(JPEG, "signal SIGSEGV")).startswith("decoder_crashed")
        and right(made)
    )
    made.close()


@pytest.mark.slow
def test_the_child_is_confined(child):
    right(child)
    limits = {
        name: status(child.pid, name, "limits").split()[0]
        for name in ("Max core file size", "Max open files")
    }
    assert limits == {"Max core file size": "0", "Max open files": "32"}
    room = int(status(child.pid, "Max address space", "limits").split()[0])
    assert room < child.settings.child_memory_bytes + (600 << 20)
    assert status(child.pid, "NoNewPrivs") == "1"


PARENT = """
import sys, threading
from pathlib import Path
from wordsworth.pipeline.images.sandbox import Sandbox, SandboxSettings
from wordsworth.pipeline.images.limits import DecodeLimits
from tests.support.hostile import ordered
from tests.support.samples import encoded, photo

limits = DecodeLimits(max_pixels=1_000_000, timeout_s=60.0)
child = Sandbox(SandboxSettings(limits=limits, script=Path(sys.argv[2])))
start = lambda: child.decode(encoded(photo(0)))
if "thread" in sys.argv[1]:
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
print(child.pid, flush=True)
child.decode(ordered(encoded(photo(0)), "hang")) if "busy" in sys.argv[1] else sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["idle", "busy", "idle, started by a thread"])
def test_the_child_dies_with_its_parent(doing):
    command = [sys.executable, "-c", PARENT, doing, str(HOSTILE)]
    parent = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.wait()
    assert gone_within(pid, 10)


@pytest.mark.slow
def test_the_child_of_a_thread_outlives_the_thread(child):
    thread = threading.Thread(target=right, args=(child,))
    thread.start()
    thread.join()
    pid = child.pid
    time.sleep(0.3)
    assert alive(pid) and right(child) and child.pid == pid


@pytest.mark.slow
def test_a_child_that_cannot_start_is_the_machines_fault_and_says_why_in_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_library")
    (tmp_path / "silent.py").write_text("import os; os._exit(3)")
    for name, reason in [
        ("broken", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("silent", "it ended with exit code 3"),
    ]:
        made = guarded(script=tmp_path / f"{name}.py")
        with pytest.raises(UserError) as error:
            made.decode(JPEG)
        assert str(error.value) == f"the process that decodes images does not start (3 attempts): {reason}"
        made.close()


@pytest.mark.slow
def test_a_process_keeps_its_child_and_other_settings_bring_another():
    settings = SandboxSettings(limits=DecodeLimits(max_pixels=1_000_000, timeout_s=5.0))
    first = process_sandbox(settings)
    assert right(first) and process_sandbox(settings) is first
    pid = first.pid
    larger = replace(settings, limits=replace(settings.limits, max_pixels=2_000_000))
    other = process_sandbox(larger)
    assert other is not first and not alive(pid) and right(other)
    pid = other.pid
    sandbox.close_process_sandbox()
    assert not alive(pid)


FORKED = """
import os
from wordsworth.pipeline.images.sandbox import SandboxSettings, process_sandbox
from wordsworth.pipeline.images.limits import DecodeLimits
from tests.support.samples import encoded, photo

data = encoded(photo(0))
settings = SandboxSettings(limits=DecodeLimits(max_pixels=1_000_000, timeout_s=10.0))
mine = process_sandbox(settings)
mine.decode(data)
pid = mine.pid
if not (fork := os.fork()):
    ours = process_sandbox(settings)
    ours.decode(data)
    os._exit(ours is mine or ours.pid == pid)
assert os.waitpid(fork, 0)[1] == 0
mine.decode(data)
assert mine.pid == pid
"""


@pytest.mark.slow
def test_a_fork_does_not_talk_to_its_parents_child():
    subprocess.run([sys.executable, "-c", FORKED], check=True, cwd=ROOT, env=ENVIRONMENT, timeout=60)


@pytest.mark.slow
def test_threads_take_turns(child):
    wrong = []

    def work(seed: int) -> None:
        wrong.extend(number for number in range(15) if not right(child, seed * 100 + number))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


# ---- what stays behind ----------------------------------------------------------------------------


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.long  # 2,000 images and 50 crashes
@pytest.mark.slow
def test_two_thousand_images_and_fifty_crashes_leave_no_file_and_no_memory_behind(child):
    images = [
        encoded(photo(seed, 200, 150), kind)
        for seed, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF"))
    ]
    images += [JPEG[:300], b"nothing"]

    def some(count: int) -> None:
        for number in range(count):
            with contextlib.suppress(DecodeError):
                child.decode(images[number % len(images)])

    some(300)
    gc.collect()  # what earlier tests left open
    files, ours, theirs = len(os.listdir("/proc/self/fd")), rss(os.getpid()), rss(child.pid)
    some(2000)
    assert rss(child.pid) < theirs + (8 << 20)
    for _ in range(50):
        assert refusal(child, ordered(JPEG, "signal SIGSEGV")).startswith("decoder_crashed")
    assert right(child) and child.restarts == 51
    assert len(os.listdir("/proc/self/fd")) == files
    assert rss(os.getpid()) < ours + (16 << 20)


@pytest.mark.slow
def test_a_large_picture_does_not_keep_its_memory(child):
    def shared_bytes() -> int:
        return int(status(os.getpid(), "RssShmem").split()[0]) << 10

    right(child)
    before = shared_bytes()  # this process has other shared memory too
    child.decode(encoded(photo(0).resize((6000, 4000))))  # 72 MB of pixels
    assert shared_bytes() - before <= sandbox.KEEP_BYTES
    assert right(child)
