"""http:// is read where --allow-http allows it, and is asked nothing where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from tests.support.builders import photo, write_tar
from tests.support.samples import rows_of
from tests.support.serving import Quiet, serving
from wordsworth.pipeline.errors import UserError, without_secrets
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.source_lists import take_queries
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP, QUERIES

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


class SignedServer(Quiet):
    """Serve files to whoever knows the signature, and answer 403 to others."""

    files: dict[str, bytes]

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body: bool = True):
        path, _, query = self.path.partition("?")
        if query != "X-Amz-Credential=A%2Fus-east-1&X-Amz-Signature=CANARY%2B":
            return self.send(403, b"", {}, body)
        found = self.files.get(unquote(path.lstrip("/")))
        if found is None:
            return self.send(404, b"", {}, body)
        if span := self.headers.get("Range"):
            begin, end = map(int, span.removeprefix("bytes=").split("-"))
            found_range = found[begin : end + 1]
            return self.send(206, found_range, {"Content-Range": f"bytes {begin}-{end}/{len(found)}"}, body)
        return self.send(200, found, {"Accept-Ranges": "bytes", "ETag": '"1"'}, body)


SIGNATURE = "?X-Amz-Credential=A%2Fus-east-1&X-Amz-Signature=CANARY%2B"


@contextmanager
def signed(files: dict[str, bytes]) -> Iterator[str]:
    with serving(type("Server", (SignedServer,), {"files": files})) as address:
        yield address


def test_the_query_of_a_signed_uri_in_a_table_reaches_no_row_and_no_fault(tmp_path):
    names = ("good", "gone", "good")
    with signed({"good.jpg": photo(1)}) as address:
        cells = [f"{address}/{name}.jpg{SIGNATURE}" for name in names] + [f"{address}/good.jpg?sig=CANARY"]
        path = tmp_path / "t.csv"
        path.write_text("url,id\n" + "".join(f"{cell},{n}\n" for n, cell in enumerate(cells)))
        found = rows(str(path), keep=("url",))
        assert [row["error"] for row in found] == [None, "not_found", None, "not_found"]
        assert [row["key"] for row in found] == [cell.partition("?")[0] for cell in cells]
        assert "CANARY" not in str(found + rows(str(path), key="id") + rows(str(path), key="url"))
        (shard,) = find_shards([str(path)]).shards
        (unit,) = read_units(shard, ReadSettings(unit_rows=100))  # without --allow-http
        assert set(unit.samples["error"].to_pylist()) == {"refused_uri"}
        assert "CANARY" not in str(unit.samples.to_pylist())


def test_a_fault_of_a_web_server_is_told_without_the_query(tmp_path, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))

    class Failing(Quiet):
        """Tell the size of every object, and give none."""

        def do_HEAD(self):
            self.send(200, b"12345", {"Accept-Ranges": "bytes"}, body=False)

        def do_GET(self):
            self.send(503, b"", {})

    with serving(Failing) as address:
        (tmp_path / "t.csv").write_text(f"url\n{address}/a.jpg?sig=CANARY\n")
        (shard,) = find_shards([str(tmp_path / "t.csv")]).shards
        (unit,) = read_units(shard, ReadSettings(unit_rows=100, storage_options=ALLOWED))
    assert f"503, message='Service Unavailable', url='{address}/a.jpg'" in unit.fault


def test_a_signed_url_is_a_source_whose_query_stays_out_of_its_shards(tmp_path):
    data = write_tar(tmp_path / "a.tar", {f"{n}.jpg": photo(n) for n in range(5)}).read_bytes()
    with signed({"a b/a.tar": data}) as address:
        sources, options = take_queries([f"{address}/a b/a.tar{SIGNATURE}", str(tmp_path)], ALLOWED)
        assert sources == (f"{address}/a b/a.tar", str(tmp_path))
        shard, local = find_shards(list(sources), storage_options=options).shards
        assert shard.uri == sources[0] and "CANARY" not in str(shard.to_row())
        read = [
            list(read_units(one, ReadSettings(unit_rows=100, storage_options=options)))
            for one in (shard, local)
        ]
        assert rows_of(read[0]) == rows_of(read[1])
        with pytest.raises(Exception, match=r"403|nothing found") as refused:
            find_shards([f"{address}/a b/a.tar?sig=CANARY"], storage_options=ALLOWED)
        assert "CANARY" not in without_secrets(str(refused.value))


def test_two_sources_that_differ_in_their_queries_alone_are_refused():
    assert take_queries(["http://h/a.tar?x", "http://h/a.tar?x", "s3://b/a?b"], {"anon": True}) == (
        ("http://h/a.tar", "http://h/a.tar", "s3://b/a?b"),
        {"anon": True, QUERIES: {"http://h/a.tar": "x"}},
    )
    with pytest.raises(UserError, match=r"http://h/get is given twice, with two queries") as refused:
        take_queries(["http://h/get?id=1", "http://h/get?id=CANARY"], None)
    assert "CANARY" not in str(refused.value)
