"""Read from web servers by signed URLs: a query is sent byte for byte as it was given.

The name of a source is its URL without the query, which stays a secret. The query travels to every process
in the storage options, as --allow-http does. No record of a run holds it, so the same command continues a run
with a new signature.
"""

import re
from typing import Any

import yarl
from fsspec.implementations.http import HTTPFileSystem

_IS_ENCODED = re.compile(r"(?:[!$&-;=?-Z_a-z~@]|%[0-9A-Fa-f]{2})*")


class WebFiles(HTTPFileSystem):
    """Read from web servers.

    Args:
        queries: query of a URL, by the URL without it
        others: as HTTPFileSystem takes them
    """

    def __init__(self, *args: Any, queries: dict[str, str], **others: Any):
        super().__init__(*args, **others)
        self.queries = queries

    def encode_url(self, url: str) -> yarl.URL:
        """Return what the server is asked for: fsspec calls this before each request."""
        name, _, query = url.partition("?")
        query = query or self.queries.get(url, "")
        if not query or not _IS_ENCODED.fullmatch(query):
            return super().encode_url(url)
        return yarl.URL(f"{super().encode_url(name)}?{query}", encoded=True)
