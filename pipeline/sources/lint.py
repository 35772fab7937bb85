"""Say what is wrong with shards, without a model: the labeler's own reader reads each tar once.

Memory holds a hash for every key of one shard, and the first places of each finding; never a member's data.
"""

from collections.abc import Callable, Iterator

from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.lint_report import MOST_PLACES, MOST_TEXT, LintReport, ShardFindings
from wordsworth.pipeline.sources.lint_tar import lint_tar
from wordsworth.pipeline.sources.lint_zip import lint_zip
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import ListedImage, Shard
from wordsworth.pipeline.sources.table import table_rows
from wordsworth.pipeline.sources.tar_keys import split_key
from wordsworth.pipeline.storage.filesystem import without_credentials
from wordsworth.pipeline.storage.refusals import explanation

# The codes of findings in tables, where the reader's code of an error has another name.
_TABLE_CODES = {"shard_truncated": "truncated", "too_many_bytes": "oversized_member"}


def lint(
    sources: list[str],
    settings: ReadSettings,
    *,
    format: str | None = None,
    rules: ListingRules | None = None,
    most_places: int = MOST_PLACES,
    on_shard: Callable[[int, int, str], None] | None = None,
) -> LintReport:
    """Read all shards of the sources and say what is wrong with them.

    A shard that the store does not give is `unreadable`.

    Args:
        sources: as in `find_shards`
        settings: how the labeler would read; image_keys, keep, max_bytes and storage_options count here
        format: as in `find_shards`
        rules: as in `find_shards`
        most_places: places to keep for each shard and code
        on_shard: hears of each shard before it is read: its number from 1 on, the number of shards, its name

    Raises:
        UserError: as `find_shards` does.
    """
    listing = find_shards(
        sources,
        format=format,
        image_keys=settings.image_keys,
        storage_options=settings.storage_options,
        rules=rules,
    )
    report = LintReport(passed_over=listing.passed_over)
    prefixes: dict[str, _Prefix] = {}  # the pages of a prefix have their findings together
    for number, shard in enumerate(listing.shards, 1):
        name = without_credentials(shard.uri)
        if on_shard:
            on_shard(number, len(listing.shards), name)
        report.shards += 1
        if shard.is_page:
            report.samples += len(shard.members)
            prefixes.setdefault(name, _Prefix(settings, ShardFindings(name, most_places))).add(shard)
            continue
        found = ShardFindings(name, most_places)
        check = _CHECKS[shard.kind]
        try:
            report.samples += check(shard, settings, found)
        except (OSError, StoreFault) as error:
            fault = without_secrets(explanation(error) or f"{type(error).__name__}: {error}")
            report.unreadable[name] = " ".join(fault.split())
        report.findings += found.ordered()
    for prefix in prefixes.values():
        report.findings += prefix.found.ordered()
    return report


def _lint_table(shard: Shard, settings: ReadSettings, found: ShardFindings) -> int:
    """Check a table; return the number of rows. Images that are named by a URI are not asked for."""
    keys: set[int] = set()
    num_rows = 0
    for sample, uri in table_rows(shard, settings):
        if sample.error:
            code = _TABLE_CODES.get(sample.error, sample.error)
            found.add(code, sample.key, None, sample.detail or "")
        elif uri is None and sample.size == 0:
            found.add("empty_file", sample.key, None, "the image has no bytes")
        if sample.key is None:  # the rest of a damaged table
            continue
        num_rows += 1
        if hash(sample.key) in keys:
            found.add("repeated_key", sample.key, None, "again")
        keys.add(hash(sample.key))
    if not num_rows:
        found.add("empty_shard", None, None, "no row")
    return num_rows


_CHECKS = {"tar": lint_tar, "zip": lint_zip, "table": _lint_table}


class _Prefix:
    """Check the loose images under one prefix, page by page. Nothing is read: the listing has the sizes."""

    def __init__(self, settings: ReadSettings, found: ShardFindings):
        self.settings = settings
        self.found = found
        self.keys: set[int] = set()  # hashes of the keys that the images would have in a tar

    def add(self, page: Shard) -> None:
        """Check the images of a page."""
        for member in page.members:
            for code, detail in self._problems(member):
                self.found.add(code, member["key"], None, detail)

    def _problems(self, member: ListedImage) -> Iterator[tuple[str, str]]:
        key = split_key(member["key"])[0]
        if hash(key) in self.keys:
            yield "colliding_key", f"its key in a tar would be {key[:MOST_TEXT]}, as of another image here"
        self.keys.add(hash(key))
        if member["size"] == 0:
            yield "empty_file", "has no bytes"
        elif member["size"] > self.settings.max_bytes:
            yield "oversized_member", f"has {member['size']} bytes, at most {self.settings.max_bytes} go"
