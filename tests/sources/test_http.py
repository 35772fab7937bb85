"""http:// is read where --allow-http allows it, and is asked nothing where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from tests.support.builders import photo, write_tar
from tests.support.samples import rows_of
from tests.support.serving import Quiet, serving
from tests.support.web import Answering, canary, files_server, web_server
from wordsworth.pipeline.errors import UserError, without_secrets
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.source_lists import take_queries
from wordsworth.pipeline.storage import web as web_files
from wordsworth.pipeline.storage import web_rows
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP, ALLOW_URIS, QUERIES, open_exact
from wordsworth.pipeline.storage.streams import with_retries

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


def rows(uri: str, *named: str, **settings) -> list[dict]:
    """Return the rows of a source whose tables may name images below `named`."""
    options = {**ALLOWED, ALLOW_URIS: named}
    (shard,) = find_shards([uri], storage_options=options).shards
    units = list(read_units(shard, ReadSettings(unit_rows=100, storage_options=options, **settings)))
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
        found = [row["error"] for row in rows(str(tmp_path / "t.csv"), address)]
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
        found = rows(str(path), address, keep=("url",))
        assert [row["error"] for row in found] == [None, "not_found", None, "not_found"]
        assert [row["key"] for row in found] == [cell.partition("?")[0] for cell in cells]
        assert "CANARY" not in str(
            found + rows(str(path), address, key="id") + rows(str(path), address, key="url")
        )
        (shard,) = find_shards([str(path)]).shards
        (unit,) = read_units(shard, ReadSettings(unit_rows=100))  # without --allow-http
        assert set(unit.samples["error"].to_pylist()) == {"refused_uri"}
        assert "CANARY" not in str(unit.samples.to_pylist())


def test_a_fault_of_a_web_server_is_told_without_the_query(tmp_path, monkeypatch):
    monkeypatch.setattr(web_rows, "FIRST_WAIT_S", 0.01)
    with files_server({"a.jpg": 503}) as server:
        (tmp_path / "t.csv").write_text(f"url\n{server.address}/a.jpg?sig=CANARY\n")
        (shard,) = find_shards([str(tmp_path / "t.csv")]).shards
        options = {**ALLOWED, ALLOW_URIS: [server.address]}
        (unit,) = read_units(shard, ReadSettings(unit_rows=100, storage_options=options))
    assert f"{server.address}/a.jpg: the server answers 503" in unit.fault and "CANARY" not in unit.fault


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


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs"])
@pytest.mark.parametrize("login", ["user:CANARY@", "CANARY@", "user:CAN/ARY@"])
def test_an_address_with_a_password_is_refused_before_anything_is_asked_or_written(scheme, login):
    with pytest.raises(
        UserError, match=rf"^{scheme}://h/a\.tar: its address holds a user or a pass"
    ) as refused:
        take_queries([f"{scheme}://{login}h/a.tar"], None)
    assert "CAN" not in str(refused.value) and "ARY" not in str(refused.value)


def test_an_at_sign_that_is_no_password_is_a_name(tmp_path):
    names = ("az://images@account.dfs.core.windows.net/a", "s3://b/a@2x.jpg", "http://h/a@b.tar", "x://a@b")
    assert take_queries(names, None)[0] == names


# ---- servers that lack something --------------------------------------------------------------------------


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    web_files.WebFiles.clear_instance_cache()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "chunked", "until_closed"])
def test_a_server_without_ranges_gives_the_rows_of_the_same_file_or_is_refused(
    tmp_path, monkeypatch, no_waits, way
):
    path = write_tar(tmp_path / "a.tar", {f"{n}.jpg": photo(n) for n in range(5)})
    data = path.read_bytes()
    with web_server(lambda request: getattr(request, way)(data)) as server:
        assert rows(f"{server.address}/a.tar") == rows(str(path))
        monkeypatch.setattr(web_files, "WHOLE_BYTES", len(data) - 1)
        with pytest.raises(
            UserError, match=r"/a.tar: the server gives no byte ranges, .*: download it first"
        ):
            find_shards([f"{server.address}/a.tar"], storage_options=ALLOWED)


def test_a_loose_image_of_which_more_comes_than_was_listed_is_left_there(no_waits):
    def lie(request: Answering) -> None:
        if "Range" in request.headers:
            return request.whole(b"x", 206, Content_Range="bytes 0-0/1000")
        request.head(200, Connection="close")
        for _ in range(1 << 20):
            request.write(bytes(1 << 20))

    with web_server(lie) as server:
        (shard,) = find_shards([f"{server.address}/a.jpg"], storage_options=ALLOWED).shards
        (unit,) = read_units(shard, ReadSettings(unit_rows=10, storage_options=ALLOWED))
        assert "a.jpg has 1001 bytes, 1000 when it was listed" in unit.fault
        assert server.sent < 30 << 20


@pytest.mark.parametrize("answer", ["more", "other", "packed"])
def test_an_answer_with_other_bytes_than_the_range_is_no_data(no_waits, answer):
    def lie(request: Answering) -> None:
        headers = {"Content_Range": "bytes 7-16/100" if answer == "other" else "bytes 0-9/100"}
        headers |= {"Content_Encoding": "br"} if answer == "packed" else {}
        request.whole(bytes(range(100)), 206, **headers)

    with web_server(lie) as server:
        fs, path = open_exact(f"{server.address}/a.tar", ALLOWED)
        if answer == "more":
            assert fs.cat_file(path, start=0, end=10) == bytes(range(10))
        else:
            with pytest.raises(
                OSError, match=r"other bytes than it is asked for|sends br, which it was asked not"
            ):
                fs.cat_file(path, start=0, end=10)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (403, PermissionError), (503, OSError)],
)
def test_a_source_on_a_server_that_fails_is_not_called_missing(no_waits, status, kind):
    with files_server({"a.tar": status}) as server:
        fs, path = open_exact(f"{server.address}/a.tar", ALLOWED)
        for call in (fs.info, fs.cat_file, fs.exists):
            if call == fs.exists and kind is FileNotFoundError:
                assert not fs.exists(path)
                continue
            with pytest.raises(kind) as raised:
                call(path)
            assert isinstance(raised.value, FileNotFoundError) == (kind is FileNotFoundError)


def test_a_source_on_a_server_that_is_gone_is_a_fault_and_not_missing(no_waits):
    fs, path = open_exact("http://127.0.0.1:9/a.tar", ALLOWED)  # nobody listens there
    with pytest.raises(
        OSError, match=r"^http://127.0.0.1:9/a.tar: no connection: Connect call failed"
    ) as raised:
        with_retries(lambda: fs.info(path))
    assert not isinstance(raised.value, FileNotFoundError)
    with pytest.raises(UserError, match=r"^cannot read http://127.0.0.1:9/a.tar: no connection: "):
        find_shards([path], storage_options=ALLOWED)


def test_a_source_that_redirects_stays_out_of_the_user_s_own_network(tmp_path, no_waits):
    data = write_tar(tmp_path / "a.tar", {"1.jpg": photo(1)}).read_bytes()
    with canary() as inner, files_server({"a.tar": data}) as named:

        def redirect(request: Answering) -> None:
            request.whole(b"", 302, Location=(named if "named" in request.path else inner).address + "/a.tar")

        with web_server(redirect) as server:
            assert len(rows(f"{server.address}/named.tar", named.address)) == 1
            with pytest.raises(UserError, match=r"is at 127.0.0.1, .*--allow-uris http://127.0.0.1:\d+/\)"):
                find_shards([f"{server.address}/a.tar"], storage_options=ALLOWED)
        assert inner.asked == []
