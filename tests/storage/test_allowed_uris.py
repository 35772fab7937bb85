"""Which URIs lie under a prefix of --allow-uris, and which addresses are public."""

import pytest

from wordsworth.jobs.options import StoreOptions
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.storage.addresses import is_public
from wordsworth.pipeline.storage.allowed_uris import AllowedUris, checked_prefixes, place_of


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(
            (address, True)
            for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8")
        ),
        *((address, False) for address in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0")),
        *((address, False) for address in ("169.254.169.254", "224.0.0.1", "255.255.255.255", "198.18.0.1")),
        *(
            (address, False)
            for address in ("::", "::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1")
        ),
        *((address, False) for address in ("ff02::1", "::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1")),
        *((address, False) for address in ("::10.0.0.1", "2001:db8::1", "localhost", "")),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("prefix", "uri", "holds"),
    [
        ("s3://b", "s3a://b/x", True),
        ("s3://b/in", "s3://b/in/x", True),
        ("s3://b/in/", "s3://b/in/x", True),
        ("s3://b/in", "s3://b/inner/x", False),
        ("s3://b/in", "s3://b/in/../x", False),
        ("s3://b", "s3://b/in/../x", True),
        ("az://c", "az://c/../d/x", False),
        ("az://c", "abfs://c@account.dfs.core.windows.net/x", False),
        ("hf://datasets/u/n", "hf://datasets/u/n@main/x", True),
        ("hf://datasets/u/n", "hf://datasets/u/other/x", False),
        ("hf://u/n", "hf://u/n/../../v/n/x", False),
        ("s3://arn:aws:s3:eu:1:accesspoint/a", "s3://arn:aws:s3:eu:1:accesspoint/b/x", False),
        ("https://h/in", "https://H:443/in/x", True),
        ("https://h/in", "http://h/in/x", False),
        ("https://h/in", "https://h:444/in/x", False),
        ("https://h/in", "https://h/in/%2e%2e/x", False),
        ("https://h/in", "https://h/in/..%2fx", False),
        ("https://h/in", "https://h/inner", False),
        ("https://h/in", "https://h.evil/in/x", False),
        ("https://h/in", "https://h@evil/in/x", False),
        ("http://[::1]:80/in", "http://[::1]/in/x", True),
        ("http://[::1]:80/in", "http://[::2]/in/x", False),
    ],
)
def test_what_lies_under_a_prefix(prefix, uri, holds):
    assert AllowedUris(checked_prefixes([prefix])).has_object(place_of(uri)) is holds


@pytest.mark.parametrize(
    "given",
    ["", "ftp://h/", "s3://", "https://", "https:///x", "https://h:99999/", "s3://b::http://h/", "pipe:ls"],
)
def test_a_prefix_that_names_no_place_is_refused(given):
    with pytest.raises(UserError, match=r"--allow-uris .*: give an absolute folder, s3://BUCKET"):
        StoreOptions(allow_uris=[given]).storage  # noqa: B018
