"""What --classes and --prompt take, and the one line that each mistake gives."""

import pytest

from tests.support.stores import s3_bucket
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.prediction.class_texts import read_zero_shot


def classes(given, prompt=None):
    return read_zero_shot(given, prompt, None).classes


def refused(given, prompt=None) -> str:
    with pytest.raises(UserError) as error:
        read_zero_shot(given, prompt, None)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    return str(error.value)


def test_names_come_from_a_list_or_from_lines(tmp_path):
    assert classes("cat, dog ,red car,") == ("cat", "dog", "red car")
    assert classes(["a, b", "c"]) == ("a, b", "c")  # from Python
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat\r\n\r\n  dog, grey \r\nCafé\r\n\r\n".encode())  # BOM, CRLF, empty lines
    assert classes(f"@{path}") == ("cat", "dog, grey", "Café")


def test_prompts_come_from_the_option_or_from_lines(tmp_path):
    assert read_zero_shot("a,b", None, None).prompts == ("a photo of a {}",)
    assert read_zero_shot("a,b", "a {}, small", None).prompts == ("a {}, small",)
    (tmp_path / "p.txt").write_text("one {}\ntwo {}\n")
    assert read_zero_shot("a,b", f"@{tmp_path}/p.txt", None).prompts == ("one {}", "two {}")


def test_files_come_from_a_store_too():
    with s3_bucket() as bucket:
        bucket.objects["b/classes.txt"] = b"cat\ndog\n"
        bucket.objects["b/prompts.txt"] = b"my {}\n"
        found = read_zero_shot("@s3://b/classes.txt", "@s3://b/prompts.txt", None)
    assert (found.classes, found.prompts) == (("cat", "dog"), ("my {}",))


def test_twenty_thousand_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(f"thing {i}" for i in range(20_000)))
    assert len(classes(f"@{path}")) == 20_000


def test_what_cannot_be_used_is_said_in_one_line(tmp_path):
    path = tmp_path / "c.txt"
    assert "no such file" in refused(f"@{path}")
    path.write_text("\n \n")
    assert "is empty" in refused(f"@{path}")
    path.write_text("cat\ndog\ncat\nowl\ndog\n")
    assert "names 'cat', 'dog' more than once" in refused(f"@{path}")
    assert "prompt '' has no {}" in refused("a,b", "") and "no prompt" in refused("a,b", [])
    path.write_text("Café\nCafe\u0301\n")  # one name in two forms
    assert "more than once" in refused(f"@{path}")
    path.write_text("cat\n# animals\n")
    assert "'# animals' begins with #" in refused(f"@{path}")
    path.write_bytes(b"cat\ncaf\xe9\n")
    assert "is not UTF-8" in refused(f"@{path}")
    assert "names no class" in refused(" , ")
    doubled = refused("dog, brown,dog, white")
    assert "'dog' more than once" in doubled and "--classes @FILE" in doubled
    assert "has no {}" in refused("a,b", "a photo")
    assert "has {name}" in refused("a,b", "a photo of a {name}")
    path.write_text("fine {}\n{} and {}\n")
    assert "'{} and {}' has {} 2 times" in refused("a,b", f"@{path}")
