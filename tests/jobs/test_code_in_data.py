"""No command runs code that stands in data: pickles, modules, arrays and checkpoints among images."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.builders import photo, write_tar
from wordsworth.jobs.cli import run

SHAPE = ("--width", "32", "--depth", "1", "--heads", "2", "--patch-size", "8", "--image-size", "32")
STEPS = ("--batch-size", "8", "--epochs", "1")
FIELDS = ("pkl", "pyd", "pth", "npy", "pt", "pickle", "py")


class Touch:
    """Make a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def payloads(marker: Path) -> dict[str, bytes]:
    """Return a file of each kind that runs code where a library opens it with trust."""
    pickled = pickle.dumps(Touch(marker))
    checkpoint, array = io.BytesIO(), io.BytesIO()
    torch.save(Touch(marker), checkpoint)
    np.save(array, np.array([Touch(marker)], dtype=object))
    made = dict.fromkeys(FIELDS, pickled) | {"pth": checkpoint.getvalue(), "pt": checkpoint.getvalue()}
    return made | {"npy": array.getvalue(), "py": f"open({str(marker)!r}, 'w')".encode()}


@pytest.fixture
def shards(tmp_path):
    members = {}
    for number in range(16):
        members |= {f"{number:02d}.jpg": photo(number), f"{number:02d}.cls": str(number % 2).encode()}
        members |= {f"{number:02d}.{name}": data for name, data in payloads(tmp_path / "ran").items()}
        members[f"{number:02d}.json"] = json.dumps({"x": number}).encode()
    write_tar(tmp_path / "in" / "a.tar", members)
    return tmp_path / "in"


def test_the_payloads_are_such(tmp_path):
    for name, data in payloads(tmp_path / "ran").items():
        if name in ("pkl", "pyd", "pickle"):
            pickle.loads(data)
        elif name == "npy":
            np.load(io.BytesIO(data), allow_pickle=True)
        elif name == "py":
            exec(data)
        else:
            torch.load(io.BytesIO(data), weights_only=False)
        (tmp_path / "ran").unlink()


@pytest.mark.slow
def test_label_verify_and_lint_run_no_code_of_their_data(local_ray, tmp_path, shards, small_model, capfd):
    keep = ",".join(("json", *FIELDS))
    out = str(tmp_path / "out")
    source = str(shards)
    assert run(["label", source, "--output", out, "--model", str(small_model), "--keep", keep]) == 0
    assert run(["verify", out, "--source"]) == 0
    assert run(["lint", source, "--keep", keep]) == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_no_other_command_runs_code_of_its_data_either(tmp_path, shards, small_model, wordsworth):
    model = ("--model", small_model)
    trained = tmp_path / "trained"
    for number in range(4):
        place = tmp_path / "images" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(photo(number))
        for name, data in payloads(tmp_path / "ran").items():
            (place / f"{number}.{name}").write_bytes(data)
    commands = [
        ("embed", shards, "--output", tmp_path / "vectors", *model, "--keep", ",".join(FIELDS)),
        ("plan", shards, *model, "--seconds", "0.2"),
        ("pack", tmp_path / "images", "--output", tmp_path / "packed"),
        ("pretrain", shards, "--output", trained, *SHAPE, *STEPS),
        ("finetune", shards, "--model", trained, "--output", tmp_path / "tuned", *STEPS),
        ("evaluate", shards, "--model", trained),
        ("label", tmp_path / "images", "--output", tmp_path / "loose", *model, "--format", "images"),
        ("compact", tmp_path / "vectors", "--output", tmp_path / "large"),
    ]
    for command in commands:
        done = wordsworth(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert not (tmp_path / "ran").exists()
