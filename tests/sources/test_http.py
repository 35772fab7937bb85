"""http:// is read where --allow-http allows it, and is asked nothing where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.builders import photo, write_tar
from tests.support.serving import Quiet, serving
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP

ALLOWED = {ALLOW_HTTP: True}


@contextmanager
def web(files: dict[str, bytes | int]) -> Iterator[tuple[str, list[str]]]:
    """Serve files with byte ranges; a number instead of a file is the status. Give address and requests."""
    asked: list[str] = []

    class Handler(Quiet):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body: bool = True):
            asked.append(self.path)
            found = files.get(self.path.lstrip("/"), 404)
            if isinstance(found, int):
                return self.send(found, b"", {}, body)
            if span := self.headers.get("Range"):
                begin, _, end = span.removeprefix("bytes=").partition("-")
                begin, end = int(begin), min(int(end or len(found)), len(found) - 1)
                return self.send(
                    206, found[begin : end + 1], {"Content-Range": f"bytes {begin}-{end}/{len(found)}"}, body
                )
            return self.send(200, found, {"Accept-Ranges": "bytes", "ETag": '"1"'}, body)

    with serving(Handler) as address:
        yield address, asked


def rows(uri: str, **settings) -> list[dict]:
    (shard,) = find_shards([uri], storage_options=ALLOWED).shards
    units = list(read_units(shard, ReadSettings(unit_rows=100, storage_options=ALLOWED, **settings)))
    assert not any(unit.fault for unit in units), [unit.fault for unit in units]
    return [row for unit in units for row in unit.samples.to_pylist()]


@pytest.mark.slow
def test_a_web_server_is_asked_nothing_unless_it_is_allowed(tmp_path):
    with web({"a.tar": b""}) as (address, asked):
        with pytest.raises(
            UserError, match=r"cannot read http://127.* \(--allow-http reads from web servers\)"
        ):
            find_shards([f"{address}/a.tar"])
        (tmp_path / "t.jsonl").write_text(f'{{"url": "{address}/x.jpg"}}\n')
        (shard,) = find_shards([str(tmp_path / "t.jsonl")]).shards
        (unit,) = read_units(shard, ReadSettings(unit_rows=10))
        assert unit.samples["error"].to_pylist() == ["refused_uri"]
        assert asked == []


@pytest.mark.slow
def test_a_shard_on_a_web_server_gives_the_rows_of_the_same_file(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{n}.jpg": photo(n) for n in range(5)})
    local = [(row["key"], row["offset"], row["size"]) for row in rows(str(path))]
    with web({"a.tar": path.read_bytes()}) as (address, _):
        assert [(row["key"], row["offset"], row["size"]) for row in rows(f"{address}/a.tar")] == local


@pytest.mark.slow
def test_a_dead_link_in_a_table_is_a_row_whatever_the_server_calls_it(tmp_path):
    with web({"good.jpg": photo(1), "gone.jpg": 410, "secret.jpg": 403}) as (address, _):
        names = ("good", "gone", "secret", "never")
        (tmp_path / "t.csv").write_text("url\n" + "".join(f"{address}/{name}.jpg\n" for name in names))
        found = [row["error"] for row in rows(str(tmp_path / "t.csv"))]
    assert found == [None, "not_found", "not_found", "not_found"]
