"""Check one zip archive, image by image: each is read, and its checksum is taken."""

from wordsworth.pipeline.sources.lint_report import ShardFindings
from wordsworth.pipeline.sources.samples import EncodedSample, ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.sources.zip_archive import zip_samples

# The codes of findings, where the reader's code of an error has another name.
_CODES = {"shard_truncated": "truncated", "too_many_bytes": "oversized_member"}


def lint_zip(shard: Shard, settings: ReadSettings, found: ShardFindings) -> int:
    """Check an archive; return the number of images.

    Raises:
        OSError: the store fails.
    """
    keys: set[int] = set()
    num_images = 0

    def note_skipped(place: int, kind: str) -> None:
        found.add("skipped_member", None, None, kind, kind)

    for sample in zip_samples(shard, settings, 0, note_skipped):
        if sample.error:
            found.add(_CODES.get(sample.error, sample.error), sample.key, None, sample.detail or "")
        if sample.key is not None:  # else it is the rest of a cut archive
            num_images += 1
            _check_image(sample, sample.key, settings, found)
            if hash(sample.key) in keys:
                found.add("repeated_key", sample.key, None, "again")
            keys.add(hash(sample.key))
    if not num_images:
        found.add("empty_shard", None, None, "no image")
    return num_images


def _check_image(sample: EncodedSample, key: str, settings: ReadSettings, found: ShardFindings) -> None:
    if sample.error is None and not sample.size:
        found.add("empty_file", key, None, "the image has no bytes")
    if key.startswith("/"):
        found.add("unsafe_key", key, None, "an absolute path")
    elif ".." in key.split("/"):
        found.add("unsafe_key", key, None, "leaves its folder by ..")
    for extension, text in zip(settings.keep, sample.sidecars, strict=True):
        if text is None:
            found.add("missing_sidecar", key, None, f"has no {extension}", extension)
