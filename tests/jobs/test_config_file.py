"""The file of --config: plain values, and no more of them than options need."""

import time

import pytest

from wordsworth.jobs.cli import run

PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))


def tens(begin: str, end: str) -> str:
    """Return lines of which each repeats the one before ten times."""
    return "".join(f"{name}: &{name} {begin}[{f'*{before}, ' * 10}]{end}\n" for before, name in PAIRS)


LAUGHS = f"a: &a [{'x, ' * 10}]\n{tens('', '')}"
MERGES = f"a: &a {{x: 1, y: 2}}\n{tens('{<<: ', '}')}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", LAUGHS, "its aliases stand for more than 100,000 values"),
        ("c.yaml", MERGES, "its aliases stand for more than 100,000 values"),
        ("c.yaml", "a: &a [*a]\n", "its aliases stand for more than 100,000 values"),
        ("c.yaml", "image-size: !!python/object/apply:os.system ['touch {marker}']", "could not determine a"),
        ("c.yaml", "[" * 100_000, "its brackets are nested too deep"),
        ("c.toml", "a = " + "[" * 100_000, "its brackets are nested too deep"),
        ("c.toml", "image-size = " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("c.yaml", "image-size: " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("c.toml", "#" * (2 << 20), "has more than 1,048,576 bytes"),
        ("c.toml", "\x00", "c.toml: "),
        ("c.yaml", "\xff\x00\x1b]0;owned\x07", "c.yaml: "),
    ],
)
def test_a_config_that_is_a_bomb_or_names_code_is_one_line_at_once(tmp_path, capsys, name, text, message):
    marker = tmp_path / "marker"
    (tmp_path / name).write_text(text.replace("{marker}", str(marker)))
    begun = time.monotonic()
    assert run(["models", "--config", str(tmp_path / name)]) == 2
    assert time.monotonic() - begun < 10
    stdout, stderr = capsys.readouterr()
    assert message in stderr and len(stderr.splitlines()) == 1 and stdout == "" and "\x1b" not in stderr
    assert not marker.exists()


def test_aliases_of_a_sane_config_are_read(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("json: &yes true\nimage-size: 32\n")
    assert run(["models", "--config", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out.startswith("[")
