"""Images on web servers: whole, bounded in bytes and time, named where they fail, and asked for politely."""

import gzip
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.support.builders import photo
from tests.support.tables import write_csv
from tests.support.web import PIECE, Answering, Web, files_server, web_server
from wordsworth.pipeline.sources import byte_budget, table_images
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage import web, web_rows
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP, ALLOW_URIS
from wordsworth.pipeline.storage.whole_object import NoRoom
from wordsworth.pipeline.unit import Unit

DEAD = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(autouse=True)
def new_clients(monkeypatch):
    """Let no test meet what another one learnt of a server, and wait a tenth of the time."""
    web.WebFiles.clear_instance_cache()
    web_rows.RowFiles.clear_instance_cache()
    monkeypatch.setattr(web_rows, "FIRST_WAIT_S", 0.05)


def read(path: Path | str, *named: Web | str, **settings) -> list[Unit]:
    addresses = [one if isinstance(one, str) else one.address for one in named]
    options = {ALLOW_HTTP: True, ALLOW_URIS: addresses}
    (shard,) = find_shards([str(path)], storage_options=options).shards
    reading = ReadSettings(unit_rows=1000, storage_options=options, **settings)
    return list(read_units(shard, reading))


def rows(path: Path | str, *named: Web | str, **settings) -> list[dict]:
    units = read(path, *named, **settings)
    assert [unit.fault for unit in units] == [None] * len(units)
    return [row for unit in units for row in unit.samples.to_pylist()]


def table(tmp_path: Path, *urls: str) -> Path:
    return write_csv(tmp_path / "t.csv", [{"url": url, "n": n} for n, url in enumerate(urls)])


def errors(found: list[dict]) -> list[str | None]:
    return [row["error"] for row in found]


@pytest.mark.parametrize("way", ["chunked", "until_closed", "whole"])
def test_a_body_without_its_length_is_read_to_its_end(tmp_path, way):
    body = random.Random(1).randbytes(300_000)

    def answer(request: Answering) -> None:
        getattr(request, way)(body)

    with web_server(answer) as server:
        urls = [f"{server.address}/{n}.jpg" for n in range(20)]
        units = read(table(tmp_path, *urls), server)
        assert b"".join(unit.payload.tobytes() for unit in units) == body * 20
        assert sorted(server.paths) == sorted(f"/{n}.jpg" for n in range(20)), "one request an image"
        assert all(line.startswith("GET ") for line, _ in server.asked)


@pytest.mark.parametrize("way", ["chunked", "until_closed", "told"])
def test_an_endless_body_is_left_at_the_limit_whatever_was_said_of_its_size(tmp_path, way):
    def answer(request: Answering) -> None:
        if request.command == "HEAD":
            return request.head(200, Content_Length=1000)
        heads = {"chunked": {"Transfer_Encoding": "chunked"}, "told": {"Content_Length": 1 << 40}}
        request.head(200, **heads.get(way, {"Connection": "close"}))
        for _ in range(1 << 20):
            request.write(b"%x\r\n%s\r\n" % (PIECE, bytes(PIECE)) if way == "chunked" else bytes(PIECE))

    with web_server(answer) as server:
        found = rows(
            table(tmp_path, f"{server.address}/a.jpg", f"{server.address}/b.jpg"), server, max_bytes=10**6
        )
        assert errors(found) == ["too_many_bytes"] * 2
        assert server.sent < 40 << 20, "what the sockets hold, and no more"


def test_a_compressed_body_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(table_images, "HELD_BYTES", 2 << 20)
    image, bomb = photo(1), gzip.compress(bytes(100 << 20), 9)
    bodies = {"/good.jpg": gzip.compress(image), "/cut.jpg": gzip.compress(image)[:-9], "/no.jpg": b"no gzip"}

    def answer(request: Answering) -> None:
        request.whole(bodies.get(request.path, bomb), Content_Encoding="gzip")

    with web_server(answer) as server:
        names = [*bodies, *(f"/bomb{number}.jpg" for number in range(12))]
        path = table(tmp_path, *(server.address + name for name in names))
        tracemalloc.start()
        try:
            found = rows(path, server, max_bytes=4 << 20)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert errors(found) == [None, "unreachable", "not_found", *["too_many_bytes"] * 12]
        assert found[0]["size"] == len(image)
        assert {head["Accept-Encoding"] for _, head in server.asked} == {"identity"}
    assert most < 24 << 20, "the first one, what all others may hold, and a piece of each"


def test_bodies_of_unknown_size_share_the_bytes_that_may_be_held(tmp_path, monkeypatch):
    monkeypatch.setattr(table_images, "HELD_BYTES", 1 << 20)
    claims: list[int] = []
    claim = byte_budget.ByteBudget._claim

    def watched(self, number, num_bytes):
        is_granted = claim(self, number, num_bytes)
        claims.append(sum(held for at, held in self._held.items() if at > self._first))
        return is_granted

    monkeypatch.setattr(byte_budget.ByteBudget, "_claim", watched)
    bodies = {f"/{n}.jpg": random.Random(n).randbytes(100_000 + 20_000 * n) for n in range(20)}
    with web_server(lambda request: request.chunked(bodies[request.path])) as server:
        units = read(table(tmp_path, *(server.address + name for name in bodies)), server)
    assert b"".join(unit.payload.tobytes() for unit in units) == b"".join(bodies.values())
    assert max(claims) <= 1 << 20, "more than the image that comes next"


def test_a_body_of_unknown_size_is_left_when_there_is_no_room_for_more(tmp_path):
    def endless(request: Answering) -> None:
        request.head(200, Connection="close")
        for _ in range(1 << 20):
            request.write(bytes(PIECE))

    with web_server(endless) as server:
        files = web_rows.RowFiles(allowed=(server.address,))
        with pytest.raises(NoRoom):
            files.read_whole(f"{server.address}/a.jpg", 1 << 40, lambda num_bytes: num_bytes < 10**6)
        assert server.sent < 20 << 20


@pytest.mark.slow
def test_waiting_for_other_images_of_a_server_does_not_count_as_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "HOST_CONNECTIONS", 1)
    monkeypatch.setattr(web_rows, "HOST_CONNECTIONS", 1)
    monkeypatch.setattr(web_rows, "OBJECT_S", 1)

    def slow(request: Answering) -> None:
        time.sleep(0.15)
        request.whole(b"x")

    with web_server(slow) as server:
        urls = [f"{server.address}/{n}.jpg" for n in range(table_images.FETCHERS)]
        assert errors(rows(table(tmp_path, *urls), server)) == [None] * len(urls)


def test_a_server_that_fails_is_no_missing_image(tmp_path):
    """403 and 404 are about the link. All else is about the server, and has a name of its own."""
    statuses = [404, 410, 401, 403, 451, 400, 500, 502, 503, 504, 429, 408]
    files = {f"{status}.jpg": status for status in statuses} | {"good.jpg": photo(1)}
    with files_server(files) as server:
        urls = [f"{server.address}/{status}.jpg" for status in statuses]
        found = rows(table(tmp_path, *urls, f"{server.address}/good.jpg", f"{DEAD}/a.jpg"), server, DEAD)
    assert errors(found) == ["not_found"] * 6 + ["unreachable"] * 6 + [None, "unreachable"]
    assert found[6]["error_detail"] == "the server answers 500"
    assert found[13]["error_detail"].startswith("no connection: Connect")


@pytest.mark.parametrize("place", ["first", "last", "read again"])
def test_one_broken_image_of_the_only_server_is_a_row_wherever_it_stands(tmp_path, place):
    with files_server({"good.jpg": photo(1), "bad.jpg": 500}) as server:
        names = ["bad", "good"] if place == "first" else ["good", "bad"]
        path = table(tmp_path, *(f"{server.address}/{name}.jpg" for name in names))
        options = {ALLOW_HTTP: True, ALLOW_URIS: [server.address]}
        (shard,) = find_shards([str(path)], storage_options=options).shards
        at = 1 if place == "read again" else 0  # as another process continues behind the good one
        (unit,) = read_units(
            shard, ReadSettings(unit_rows=1000, storage_options=options), at, position=at, index=at
        )
        assert unit.fault is None
        found = unit.samples["error"].to_pylist()
        assert found == {"first": ["unreachable", None], "last": [None, "unreachable"]}.get(
            place, ["unreachable"]
        )


def test_the_only_server_that_fails_for_all_its_images_is_a_fault_soon(tmp_path):
    """Ask a server that may be down for few other images, one after the other."""
    with files_server({"a.jpg": 500}) as server:
        path = table(tmp_path, f"{server.address}/a.jpg", *(f"{DEAD}/{n}.jpg" for n in range(50)))
        (unit,) = read(path, server, DEAD)
        assert unit.fault and len(unit.samples) == 0
        assert server.paths == ["/a.jpg"] * web_rows.TRIES


@pytest.mark.parametrize("span", ["bytes 0-99/1895", "bytes 50-149/1895", "junk", ""])
def test_a_part_that_was_not_asked_for_is_no_image(tmp_path, span):
    image = photo(1)

    def answer(request: Answering) -> None:
        if request.path == "/part.jpg":
            request.whole(image[:100], 206, Content_Range=span)
        else:
            request.whole(image)

    with web_server(answer) as server:
        part, good = rows(table(tmp_path, f"{server.address}/part.jpg", f"{server.address}/good.jpg"), server)
    assert (part["error"], good["error"]) == ("unreachable", None)
    assert part["error_detail"].startswith("the server gives a part of the image")


def test_a_long_word_of_a_server_fills_no_row(tmp_path):
    def answer(request: Answering) -> None:
        request.whole(b"x", Content_Encoding="z" * 5000)

    with web_server(answer) as server:
        (found,) = rows(table(tmp_path, f"{server.address}/a.jpg"), server)
    assert found["error"] == "not_found" and len(found["error_detail"]) < 120


def test_the_scheme_of_a_web_address_may_be_written_large(tmp_path):
    with files_server({"A.jpg": photo(1)}) as server:
        urls = [server.address.replace("http", scheme) + "/A.jpg" for scheme in ("HTTP", "Http", "http")]
        found = rows(table(tmp_path, *urls), server)
        assert errors(found) == [None] * 3 and [row["key"] for row in found] == urls
        assert errors(rows(table(tmp_path, "HTTP://[::1]:9/A.jpg"), server)) == ["refused_uri"]


def test_without_a_server_that_answers_a_failure_is_a_fault_and_no_row(tmp_path):
    with files_server({"good.jpg": photo(1)}) as server:
        good = f"{server.address}/good.jpg"
    (unit,) = read(table(tmp_path, f"{DEAD}/a.jpg?sig=CANARY", good), server, DEAD)
    assert unit.fault and len(unit.samples) == 0 and not unit.last
    assert unit.fault.startswith(f"StoreFault: {DEAD}/a.jpg: no connection") and "CANARY" not in unit.fault


def test_a_row_that_is_read_last_finds_its_witness_at_the_begin_of_the_table(tmp_path):
    with files_server({"good.jpg": photo(1)}) as server:
        options = {ALLOW_HTTP: True, ALLOW_URIS: [server.address, DEAD]}
        (shard,) = find_shards([str(table(tmp_path, f"{server.address}/good.jpg", f"{DEAD}/a.jpg"))]).shards
        settings = ReadSettings(unit_rows=1, storage_options=options)
        _, last = read_units(shard, settings)
        web_rows.RowFiles.clear_instance_cache()
        (again,) = read_units(shard, settings, 1, position=1, index=1)  # as another process continues
        assert last.samples["error"].to_pylist() == again.samples["error"].to_pylist() == ["unreachable"]


def test_one_dead_server_among_many_is_left_alone_after_a_few_tries(tmp_path):
    def failing(request: Answering) -> None:
        request.whole(b"", 503)

    with web_server(failing) as dead, files_server({"a.jpg": photo(1)}) as server:
        urls = [f"{server.address}/a.jpg" if n % 2 else f"{dead.address}/{n}.jpg" for n in range(400)]
        began = time.monotonic()
        found = rows(table(tmp_path, *urls), server, dead)
        assert errors(found) == ["unreachable", None] * 200
        assert len(dead.asked) <= web_rows.TRIES * (table_images.AHEAD + 1)
        assert time.monotonic() - began < 30


@pytest.mark.slow
def test_the_table_s_own_server_that_fails_is_a_fault_while_others_answer(tmp_path):
    with files_server({"other.jpg": photo(2)}) as other:
        rows_of_table = f"url\na.jpg\n{other.address}/other.jpg\n".encode()
        files: dict[str, bytes | int] = {"t.csv": rows_of_table, "a.jpg": 503}
        with files_server(files) as own:
            (unit,) = read(f"{own.address}/t.csv", other)
            assert unit.fault and f"{own.address}/a.jpg" in unit.fault
            files["t.csv"] = rows_of_table + b"good.jpg\n"
            files["good.jpg"] = photo(3)
            web.WebFiles.clear_instance_cache()
            web_rows.RowFiles.clear_instance_cache()
            assert errors(rows(f"{own.address}/t.csv", other)) == ["unreachable", None, None]


@pytest.mark.slow
def test_a_server_that_drips_costs_one_row_and_a_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr(web_rows, "OBJECT_S", 1.5)

    def answer(request: Answering) -> None:
        if request.path == "/good.jpg":
            return request.whole(photo(1))
        request.head(200, Content_Length=1000)
        for _ in range(100):
            request.write(b"x")
            time.sleep(0.2)

    with web_server(answer) as server:
        urls = [f"{server.address}/{name}.jpg" for name in ("drip", "good")]
        began = time.monotonic()
        found = rows(table(tmp_path, *urls), server)
        assert errors(found) == ["unreachable", None] and time.monotonic() - began < 6
    assert found[0]["error_detail"] == "not read within 2 s"


@pytest.mark.slow
def test_one_server_gets_a_few_connections_at_once_and_is_told_who_asks(tmp_path):
    def answer(request: Answering) -> None:
        time.sleep(0.05)
        request.whole(b"x" * 100)

    with web_server(answer) as server:
        found = rows(table(tmp_path, *(f"{server.address}/{n}.jpg" for n in range(60))), server)
        assert errors(found) == [None] * 60
        assert 2 <= server.most_at_once <= web.HOST_CONNECTIONS
        assert all(head["User-Agent"].startswith("wordsworth") for _, head in server.asked)


@pytest.mark.slow
@pytest.mark.parametrize("after", ["1", "3600", "junk"])
def test_a_busy_server_is_asked_again_when_it_says_so(tmp_path, after):
    times: list[float] = []

    def answer(request: Answering) -> None:
        if request.path == "/good.jpg":
            return request.whole(photo(1))
        times.append(time.monotonic())
        if len(times) == 1 or after != "1":
            return request.whole(b"", 429, Retry_After=after)
        request.whole(photo(2))

    with web_server(answer) as busy, web_server(answer) as other:
        found = rows(table(tmp_path, f"{busy.address}/a.jpg", f"{other.address}/good.jpg"), busy, other)
    assert errors(found) == [None if after == "1" else "unreachable", None]
    if after == "1":
        assert len(times) == 2 and times[1] - times[0] >= 1
    else:
        assert len(times) == (1 if after == "3600" else web_rows.TRIES)
    if after == "3600":
        assert found[0]["error_detail"] == "the server asks not to be asked for 3600 s"


@pytest.mark.slow
def test_names_of_a_table_on_a_web_server_are_links_beside_it_and_never_leave_it(tmp_path):
    names = {
        **{"a.jpg": "/dir/a.jpg", "./a.jpg": "/dir/a.jpg", "sub/b c.jpg": "/dir/sub/b%20c.jpg"},
        **{"../top.jpg": "/top.jpg", "/top.jpg": "/top.jpg", "../../../top.jpg": "/top.jpg"},
        **{"cam1:1.jpg": "/dir/cam1:1.jpg", "a.jpg?v=1": "/dir/a.jpg?v=1", "%41.jpg": "/dir/A.jpg"},
    }
    leaving = [
        "//localhost/x.jpg",
        "//127.0.0.1:9/x.jpg",
        "http:///x.jpg",
        "file:///etc/passwd",
        "http://h:99999/",
    ]
    body = "url\n" + "".join(f"{name}\n" for name in [*names, *leaving])
    files = {path.partition("?")[0].lstrip("/").replace("%20", " "): photo(1) for path in names.values()}
    files = {name.replace(" ", "%20"): data for name, data in files.items()} | {"dir/t.csv": body.encode()}
    with files_server(files) as server:
        found = rows(f"{server.address}/dir/t.csv")
        assert errors(found) == [None] * len(names) + ["refused_uri"] * len(leaving)
        asked = [path for path in server.paths if not path.endswith("t.csv")]
    assert sorted(asked) == sorted(names.values())
