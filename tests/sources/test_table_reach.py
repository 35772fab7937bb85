"""Count what the rows of a table can cause: requests, connections and reads of a server on loopback."""

import ipaddress
import itertools
import os
import random
import socket
from pathlib import Path

import pytest

from tests.support.builders import photo
from tests.support.runs import build
from tests.support.stores import s3_bucket
from tests.support.tables import write_jsonl
from tests.support.web import Answering, canary, files_server, web_server
from wordsworth.jobs.cli import run
from wordsworth.pipeline.images.codec import DecodeError, Limits, decode
from wordsworth.pipeline.sources import table_uris
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.reader import read_units
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.storage import web, web_reach, web_rows
from wordsworth.pipeline.storage.filesystem import ALLOW_HTTP, ALLOW_URIS
from wordsworth.pipeline.verification.verifier import verify


@pytest.fixture(autouse=True)
def new_clients(monkeypatch):
    web.WebFiles.clear_instance_cache()
    web_rows.RowFiles.clear_instance_cache()
    monkeypatch.setattr(web_rows, "FIRST_WAIT_S", 0.01)


def rows(path: Path | str, *named: str, http: bool = True, **options) -> list[dict]:
    """Return the rows of a table that may name images below `named`."""
    given = {ALLOW_HTTP: http, ALLOW_URIS: named, **options}
    (shard,) = find_shards([str(path)], storage_options=given).shards
    units = list(read_units(shard, ReadSettings(unit_rows=10_000, storage_options=given)))
    assert [unit.fault for unit in units] == [None] * len(units)
    return [row for unit in units for row in unit.samples.to_pylist()]


def table(tmp_path: Path, *uris: str) -> Path:
    return write_jsonl(tmp_path / "t.jsonl", [{"url": uri, "n": n} for n, uri in enumerate(uris)])


def errors(found: list[dict]) -> list[str | None]:
    return [row["error"] for row in found]


# ---- loopback and other addresses -------------------------------------------------------------------------


def spellings(generator: random.Random, count: int) -> list[str]:
    """Return hosts that mean 127.0.0.1 or ::1 to some resolver, browser or library."""
    parts = (127, 0, 0, 1)
    as_number = int(ipaddress.ip_address("127.0.0.1"))
    writings = [str, hex, lambda part: f"0{part:o}", lambda part: f"0X{part:X}", lambda part: f"0x{part:08x}"]
    found = ["localhost", "LOCALHOST", "localhost.", "0", "0.0.0.0", "127.1", "127.0.1", "[::]", "[::1]"]
    found += [
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:7f00:0001]",
        "[::127.0.0.1]",
        "[::1%25lo]",
    ]
    found += ["[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.0.0.1.", "127.0.0.%31", "\uff11\uff12\uff17.0.0.1"]
    found += [
        "127\u30020\u30020\u30021",
        "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
        "ip6-localhost",
    ]
    found += [writing(as_number) for writing in writings]
    while len(found) < count:
        written = [generator.choice(writings)(part) for part in parts]
        num_parts = generator.randint(2, 4)
        rest = int.from_bytes(bytes(parts[num_parts - 1 :]), "big")
        short = [*written[: num_parts - 1], generator.choice(writings)(rest)]
        found.append(generator.choice(["", "x@", "x:y@", "8.8.8.8@", "a.example%40@"]) + ".".join(short))
    return found


@pytest.mark.slow
def test_no_spelling_of_a_loopback_address_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(web_rows, "TRIES", 1)
    hosts = spellings(random.Random(20), 120)
    with canary() as inner, files_server({"a.jpg": photo(1)}) as named:
        port = inner.address.rpartition(":")[2]
        urls = [f"http://{host}:{port}/a.jpg" for host in hosts]
        *found, good = rows(table(tmp_path, *urls, f"{named.address}/a.jpg"), named.address)
        assert good["error"] is None
        assert set(errors(found)) <= {"refused_uri", "unreachable"} and inner.asked == []
        assert sum(error == "refused_uri" for error in errors(found)) > 100
        monkeypatch.setattr(web_reach, "is_public", lambda address: True)
        web_rows.RowFiles.clear_instance_cache()
        rows(table(tmp_path, *urls))
        assert len(inner.asked) > 100, "they are spellings of it"


def test_a_name_is_judged_by_the_address_that_it_has_when_it_is_connected_to(tmp_path, monkeypatch):
    """An answer of the name server that is harmless at first and leads inside later changes nothing."""
    given, calls = socket.getaddrinfo, itertools.count()
    with canary() as inner:
        port = int(inner.address.rpartition(":")[2])

        def rebound(host, *others, **more):
            if host != "rebound.example":
                return given(host, *others, **more)
            address = "203.0.113.9" if next(calls) == 0 else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        urls = [f"http://rebound.example:{port}/{number}.jpg" for number in range(4)]
        found = rows(table(tmp_path, *urls))
        assert errors(found) == ["refused_uri"] * 4 and inner.asked == []
        assert "--allow-uris http://rebound.example" in found[0]["error_detail"]
        assert errors(rows(table(tmp_path, urls[0]), f"http://rebound.example:{port}/")) == [None]


def test_a_redirect_is_judged_like_the_row_and_tells_no_secret(tmp_path, monkeypatch):
    with canary() as inner, files_server({"a.jpg": photo(1)}) as other:
        port = inner.address.rpartition(":")[2]
        targets = {
            "/inner": f"{inner.address}/x?sig=CANARY",
            "/name": f"http://localhost:{port}/x",
            "/file": "file:///etc/passwd",
            "/none": "http:///x",
            "/twice": "/inner",
            "/other": f"{other.address}/a.jpg?sig=CANARY",
            "/loop": "/loop",
        }

        def redirect(request: Answering) -> None:
            request.whole(b"", 302, Location=targets[request.path])

        with web_server(redirect) as server:
            path = table(tmp_path, *(server.address + name for name in targets))
            found = rows(path, server.address, other.address)
            num_asked = len(server.asked)
            monkeypatch.setattr(web_reach, "is_public", lambda address: True)
            web_rows.RowFiles.clear_instance_cache()
            unnamed = rows(path, server.address, http=False)
        assert errors(found) == ["refused_uri"] * 5 + [None, "not_found"]
        assert inner.asked == [] and num_asked == 8 + web.MAX_REDIRECTS
        assert f"--allow-uris http://127.0.0.1:{port}/" in found[0]["error_detail"]
        assert errors(unnamed)[5] == "refused_uri" and len(other.asked) == 1
        assert f"--allow-uris {other.address}/" in unnamed[5]["error_detail"]
        assert "CANARY" not in str(found + unnamed)


def test_a_row_s_server_gets_no_identity_of_the_user_and_the_table_s_own_server_gets_its_headers(
    tmp_path, monkeypatch
):
    (tmp_path / "netrc").write_text("machine localhost login CANARY password CANARY\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    options = {
        "client_kwargs": {
            "trust_env": True,
            "headers": {"X-Key": "CANARY"},
            "cookies": {"c": "CANARY"},
        }
    }
    image = photo(1)
    with canary() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address.replace("//", "//user:CANARY@"))

        def other_server(request: Answering) -> None:
            request.whole(image, Set_Cookie="c=CANARY; Path=/")

        with web_server(other_server) as other:
            other.address = other.address.replace("127.0.0.1", "localhost")  # an address gets no cookies
            body = f"url\n/a.jpg\n{other.address}/a.jpg\n/moved\n{other.address}/b.jpg\n".encode()

            def own_server(request: Answering) -> None:
                if request.path == "/moved":
                    return request.whole(b"", 302, Location=f"{other.address}/moved.jpg")
                request.whole(body if request.path == "/t.csv" else image)

            with web_server(own_server) as own:
                monkeypatch.setenv("no_proxy", "127.0.0.1")
                for _ in range(2):  # the second time a cookie could be sent
                    assert errors(rows(f"{own.address}/t.csv", other.address, **options)) == [None] * 4
                by_path = {line.split()[1]: head for line, head in own.asked}
                assert by_path["/a.jpg"]["X-Key"] == "CANARY"
            assert len(other.asked) == 6 and "CANARY" not in str(other.asked)
        assert proxy.asked == []


# ---- schemes and stores -----------------------------------------------------------------------------------


def test_schemes_and_chains_that_no_table_may_name_cause_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("a shell"))
    with canary() as inner:
        host = inner.address.removeprefix("http://")
        uris = [
            f"{scheme}://{host}/a.jpg" for scheme in ("ftp", "webhdfs", "github", "smb", "ssh", "http+unix")
        ]
        uris += [
            f"{chain}::{inner.address}/a.jpg"
            for chain in ("simplecache", "filecache", "tar://a.jpg", "blockcache")
        ]
        uris += [
            f"pipe:curl {inner.address}",
            f"zip://a.jpg::{inner.address}/a.zip",
            f"dir::s3://b::{inner.address}",
        ]
        uris += [
            f"reference://::{inner.address}/r.json",
            f"data:text/plain,{inner.address}",
            f"jar:{inner.address}",
        ]
        found = rows(table(tmp_path, *uris), "s3://b", "/")
        assert inner.asked == []
        assert {*errors(found)} <= {"refused_uri", "bad_record", None}
        assert [row["key"] for row in found if row["error"] is None] == [
            str(uris.index(f"data:text/plain,{inner.address}"))
        ]


def test_the_hub_and_other_buckets_are_asked_nothing_with_the_user_s_keys(tmp_path, monkeypatch):
    opened: list[str] = []
    given = table_uris.open_exact
    monkeypatch.setattr(
        table_uris, "open_exact", lambda uri, options: opened.append(uri) or given(uri, options)
    )
    with canary() as inner:
        monkeypatch.setenv("HF_TOKEN", "hf_CANARY")
        for name in ("HF_ENDPOINT", "AWS_ENDPOINT_URL", "IDENTITY_ENDPOINT", "STORAGE_EMULATOR_HOST"):
            monkeypatch.setenv(name, inner.address)
        uris = ["hf://datasets/u/n/a.jpg", "s3://other/a.jpg", "s3a://Bad_Bucket!/x", "gs://other/a.jpg"]
        uris += ["az://c/a.jpg", "abfs://c@evil.dfs.core.windows.net/a.jpg", "s3://user:secret@own/a.jpg"]
        found = rows(path := table(tmp_path, *uris))
        assert errors(found) == ["refused_uri"] * len(uris)
        assert found[0]["error_detail"] == (
            "it is in hf://datasets/u/n, and the table is not (--allow-uris hf://datasets/u/n)"
        )
        assert inner.asked == [] and opened == [str(path)] and "secret" not in str(found)


def test_a_table_in_a_bucket_reaches_no_other_bucket_unless_it_is_named(tmp_path):
    uris = ["s3://own/a.jpg", "../dir/../a.jpg", "../../other/a.jpg", "s3://other/a.jpg", "s3://own2/a.jpg"]
    with s3_bucket() as bucket:
        bucket.objects |= {f"{name}/a.jpg": name.encode() for name in ("own", "other", "own2")}
        bucket.objects["own/dir/t.jsonl"] = table(tmp_path, *uris).read_bytes()
        assert errors(rows("s3://own/dir/t.jsonl")) == [None, None, *["refused_uri"] * 3]
        assert errors(rows("s3://own/dir/t.jsonl", "s3://other")) == [
            None,
            None,
            "refused_uri",
            None,
            "refused_uri",
        ]
        on_disk = rows(tmp_path / "t.jsonl", "s3://own/a.jpg")
        assert errors(on_disk) == [None, *["refused_uri"] * 4]


def test_commands_that_count_a_table_s_rows_fetch_none_of_its_images(tmp_path, capsys):
    with canary() as inner:
        hosts = [inner.address, inner.address.replace("127.0.0.1", "localhost"), "hf://datasets/u/n"]
        path = table(tmp_path / "in", *(f"{host}/a.jpg" for host in hosts))
        build(tmp_path / "out", path)
        report = verify(str(tmp_path / "out"), source=True, storage_options={ALLOW_HTTP: True})
        assert report.ok and report.recounted == 3, report.findings
        assert run(["lint", str(path), "--allow-http"]) == 0 and "clean: 3 samples" in capsys.readouterr().out
        assert inner.asked == []


# ---- this machine -----------------------------------------------------------------------------------------


def test_a_table_on_a_disk_reads_below_its_own_folder_and_what_is_named(tmp_path):
    own, outside = tmp_path / "own", tmp_path / "outside"
    for folder in (own / "images", outside, tmp_path / "outside2"):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(photo(1))
    (own / "link.jpg").symlink_to(outside / "a.jpg")
    (own / "folder").symlink_to(outside)
    (own / "inside.jpg").symlink_to("images/a.jpg")
    reached = ["images/a.jpg", f"{own}/images/a.jpg", f"file://{own}/images/a.jpg", "images/../inside.jpg"]
    named = ["link.jpg", "folder/a.jpg", "../outside/a.jpg", f"{outside}/a.jpg", f"file:{outside}/a.jpg"]
    never = [
        "/etc/passwd",
        "file:///etc/passwd",
        "/proc/self/environ",
        "../../../../../../etc/passwd",
        "../outside2/a.jpg",
    ]
    never += [f"{own}/../outside2/a.jpg", "folder/../../outside2/a.jpg", f"{own}/folder/../../outside2/a.jpg"]
    path = table(own, *reached, *named, *never, "images/no.jpg")
    found = rows(path)
    assert errors(found) == [None] * 4 + ["refused_uri"] * (len(named) + len(never)) + ["not_found"]
    assert found[4]["error_detail"] == f"it lies outside of the table's folder (--allow-uris {outside})"
    assert not any("root:x:0" in str(row) for row in found)
    found = rows(path, str(outside))
    assert errors(found) == [None] * 9 + ["refused_uri"] * len(never) + ["not_found"]
    link = tmp_path / "elsewhere" / "t.jsonl"
    link.parent.mkdir()
    link.symlink_to(path)
    assert errors(rows(link))[:4] == ["not_found", "refused_uri", "refused_uri", "not_found"]


@pytest.mark.parametrize(
    "content", [b"root:x:0:0:root:/root:/bin/bash\n", b"II*\0CANARY" * 20, b"BMCANARY" * 20]
)
def test_a_file_that_is_no_image_shows_none_of_its_bytes(content):
    limits = Limits(max_pixels=10**6, max_side=10**4, keep_side=0)
    with pytest.raises(DecodeError) as raised:
        decode(content, limits, lambda num_bytes: memoryview(bytearray(num_bytes)))
    assert not any(word in str(raised.value) for word in ("root", "CANARY", "\\x"))


# ---- names that a client does not take --------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_that_a_store_does_not_take_is_a_row_and_never_a_fault(tmp_path):
    def s3(request: Answering) -> None:
        if "good" in request.path:
            return request.whole(photo(1), ETag='"1"')
        code = "KeyTooLongError" if len(request.path) > 1024 else "NoSuchKey"
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        request.whole(body, 400 if code == "KeyTooLongError" else 404, Content_Type="application/xml")

    uris = [
        "s3://b/good.jpg",
        "s3://Bad_Bucket!/x",
        "s3://b/",
        "s3://b/" + "x" * 1100,
        "s3://b/no.jpg",
        "s3:///x",
    ]
    uris += [
        "http://h:x/",
        "http://[::1/",
        "http:///x",
        "http://" + "a" * 300 + ".example/x",
        "http://a..b/",
        "s3://b/good.jpg",
    ]
    with web_server(s3) as server:
        options = {
            "anon": True,
            "endpoint_url": server.address,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        options["config_kwargs"] = {"s3": {"addressing_style": "path"}}
        found = rows(table(tmp_path, *uris), "s3://b", "s3://Bad_Bucket!", **options)
    refused = "refused_uri"
    assert errors(found)[:9] == [None, refused, refused, refused, "not_found", *[refused] * 4]
    assert errors(found)[-1] is None and set(errors(found)[9:11]) <= {refused, "unreachable"}
