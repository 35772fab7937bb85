"""wordsworth lint on the command line: exit codes that scripts can trust, output that no file name can
take over."""

import json
import subprocess
import sys

import pytest

from tests.support.tars import make_tar
from wordsworth.jobs.cli import run
from wordsworth.pipeline.errors import shown
from wordsworth.pipeline.storage.streams import ObjectStream

CLEAN = [("a.jpg", b"1"), ("a.json", b"{}"), ("b.jpg", b"2"), ("b.json", b"{}")]


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "clean.tar").write_bytes(make_tar(CLEAN))
    return tmp_path


def test_a_clean_shard_exits_0_and_says_so(shards, capsys):
    assert run(["lint", str(shards / "clean.tar")]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout == "clean: 2 samples in 1 shard\n" and stderr == ""


def test_skipped_members_are_shown_and_exit_0(shards, capsys):
    (shards / "s.tar").write_bytes(make_tar([*CLEAN, ("README", b"x"), ("._b.jpg", b"x")]))
    assert run(["lint", str(shards / "s.tar")]) == 0
    stdout = capsys.readouterr().out
    assert "skipped_member" in stdout and "1 no_extension, 1 apple_double in all" in stdout
    assert stdout.endswith("clean: 2 samples in 1 shard\n")


def test_faults_stand_before_notes_on_many_shards(shards, capsys):
    for number in range(60):
        (shards / f"a{number}.tar").write_bytes(make_tar([("b.jpg", b"1"), ("a.jpg", b"2")]))
    (shards / "z.tar").write_bytes(make_tar([("b.json", b"{}")]))
    assert run(["lint", str(shards)]) == 3
    stdout = capsys.readouterr().out
    assert "missing_image" in stdout.splitlines()[1] and "unsorted" in stdout


def test_findings_exit_3_with_shard_code_count_and_place_on_one_line(shards, capsys):
    (shards / "bad.tar").write_bytes(make_tar([*CLEAN, *((f"c{n}.json", b"{}") for n in range(5))]))
    assert run(["lint", str(shards)]) == 3
    stdout, stderr = capsys.readouterr()
    (line,) = [line for line in stdout.splitlines() if "missing_image" in line]
    assert (
        str(shards / "bad.tar") in line
        and " 5 " in line
        and "c0 at byte 4096: has only json; c1 at byte" in line
    )
    assert line.endswith("...")
    assert (
        stdout.splitlines()[-1] == "not clean: 9 samples in 2 shards, 5 findings in 1 of them"
        and stderr == ""
    )


def test_json_has_every_finding_with_its_place(shards, capsys):
    (shards / "bad.tar").write_bytes(
        make_tar([*CLEAN, *((f"c{n:03d}.json", b"{}") for n in range(130)), ("d.txt", b"x")])
    )
    (shards / "other.csv").touch()
    assert run(["lint", str(shards), "--json", "--keep", "json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in ("clean", "shards", "samples", "ignored", "unreadable")} == {
        "clean": False,
        "shards": 2,
        "samples": 135,
        "ignored": {".csv": 1},
        "unreadable": {},
    }
    images, sidecars = told["findings"]
    assert (images["code"], images["shard"], images["count"], len(images["places"])) == (
        "missing_image",
        str(shards / "bad.tar"),
        131,
        100,
    )
    assert images["places"][0] == {"key": "c000", "offset": 4096, "detail": "has only json"}
    assert sidecars == {
        "code": "missing_sidecar",
        "shard": str(shards / "bad.tar"),
        "count": 1,
        "kinds": {"json": 1},
        "places": [{"key": "d", "offset": 4096 + 130 * 1024, "detail": "has no json"}],
    }


def test_no_name_reaches_the_terminal_as_a_command(shards, capsys):
    evil = "\x1b]0;owned\x07\x1b[31m[bold]\n\u202eb\u2028"
    (shards / "s.tar").write_bytes(
        make_tar([("z.jpg", b"1"), (f"../{evil}.json", b"1"), (f"{evil}/README", b"")])
    )
    assert run(["lint", str(shards / "s.tar")]) == 3
    stdout = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07\\x1b[31m[bold]\\n\\u202eb\\u2028" in stdout
    assert all(char.isprintable() or char == "\n" for char in stdout) and len(stdout.splitlines()) == 6
    assert shown("Grün 图像.jpg") == "Grün 图像.jpg"


def test_options_choose_the_images(shards, capsys):
    assert run(["lint", str(shards / "clean.tar"), "--image-key", "png"]) == 3
    assert "missing_image" in capsys.readouterr().out
    (shards / "loose.jpg").write_bytes(b"x")
    assert run(["lint", str(shards), "--format", "images"]) == 0
    assert "clean: 1 sample in 1 shard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("lint {p}/nowhere", 1, "nothing found at"),
        ("lint pipe:ls", 2, "cannot read pipe:ls"),
        ("lint", 2, "SOURCES"),
        ("lint {p} --storage-options x", 2, "no JSON"),
        ("lint {p} --kepe json", 2, "did you mean --keep?"),
    ],
)
def test_a_mistake_gets_one_line(shards, capsys, arguments, code, message):
    assert run(arguments.format(p=shards).split()) == code
    stdout, stderr = capsys.readouterr()
    assert message in stderr and len(stderr.strip().splitlines()) == 1 and stdout == ""


def test_a_shard_that_cannot_be_read_exits_1_and_is_named(shards, capsys, monkeypatch):
    (shards / "locked.tar").write_bytes(make_tar(CLEAN))
    whole = ObjectStream.readinto

    def readinto(stream, buffer):
        if stream.path.endswith("locked.tar"):
            raise PermissionError(stream.path)
        return whole(stream, buffer)

    monkeypatch.setattr(ObjectStream, "readinto", readinto)
    assert run(["lint", str(shards)]) == 1
    stdout, stderr = capsys.readouterr()
    assert f"not read {shards / 'locked.tar'}: PermissionError" in stderr
    assert stdout == "not clean: 2 samples in 2 shards, 0 findings in 0 of them, 1 not read\n"


def test_the_whole_command_loads_neither_torch_nor_ray(shards):
    code = f"import sys; from wordsworth.jobs.cli import run; code = run(['lint', {str(shards)!r}]); "
    code += "assert not {'torch', 'ray', 'timm'} & set(sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "wordsworth", "lint", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Usage: wordsworth lint" in done.stdout
