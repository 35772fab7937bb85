"""Try again the images that failed: `--retry-errors`. A unit's file is replaced as a whole, under its name.

The chain of `dataset.label_failed` runs `fetch_failed` first and `replace_rows` last. Between the two, a unit
holds only the samples that failed.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.labeling.unit_begin import unit_begin
from wordsworth.pipeline.output.commit import count_errors, make_receipt, parquet_bytes, read_footer
from wordsworth.pipeline.output.committed import UNIT_NAME, unit_file
from wordsworth.pipeline.output.frozen_listing import FrozenListing
from wordsworth.pipeline.output.prediction_rows import WriteSettings, prediction_table
from wordsworth.pipeline.output.records import FOOTER_KEY, Receipt
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.lost_objects import LOSSES, Loss
from wordsworth.pipeline.sources.reader import read_image, read_units
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import LISTING, Shard
from wordsworth.pipeline.storage.atomic import overwrite
from wordsworth.pipeline.storage.filesystem import is_local, join, open_exact
from wordsworth.pipeline.storage.objects import object_bytes
from wordsworth.pipeline.storage.read_ahead import fetched_ahead
from wordsworth.pipeline.storage.streams import with_retries
from wordsworth.pipeline.unit import SAMPLE, Unit

# Reading the same bytes again cannot end these.
LASTING_ERRORS = ("shard_truncated", "missing_image", "encrypted_member", "unknown_method")
FAILED_FILE = pa.schema([*LISTING, ("file", pa.string())])  # a shard, and the name of one of its files
PREDICTED_COLUMNS = (  # the columns of a row that another try replaces
    "size",  # of an image that was not there before
    "width",
    "height",
    "label_id",
    "label",
    "score",
    "topk",
    "labels",
    "value",
    "embedding",
    "error",
    "error_detail",
)


def failed_units(run: RunFolder, frozen: FrozenListing) -> Iterator[pa.Table]:
    """Yield a row of FAILED_FILE for each file with errors that another try may end. Reads the manifest."""
    with run.fs.open(run.path("_run", "manifest.parquet"), "rb") as file:
        manifest = pq.read_table(file, columns=["file", "errors"])
    files: dict[str, list[str]] = {}  # by the shard's name
    for row in manifest.filter(pc.not_equal(manifest["errors"], "{}")).to_pylist():
        codes = json.loads(row["errors"]).keys()
        name = UNIT_NAME.fullmatch(row["file"])
        if name and codes - set(LASTING_ERRORS):
            files.setdefault(name["shard"], []).append(row["file"])
    for shard in frozen.shards():
        for file in files.get(shard.name, ()):
            yield pa.Table.from_pylist([{**shard.to_row(), "file": file}], schema=FAILED_FILE)


# ---- fetch ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FailedSample:
    """Hold what a row with an error says of its sample; the fields are columns of the row.

    Attributes:
        key: key of the sample.
        index: number of the sample in its shard.
        offset: byte in the shard where the image begins; None where no range read finds the image.
        size: bytes of the encoded image; None where the image was not found.
        error: code of the error.
    """

    key: str
    index: int
    offset: int | None
    size: int | None
    error: str


def fetch_failed(run: RunFolder, shard: Shard, file: str, settings: ReadSettings) -> Unit:
    """Return a unit of the samples of a file that failed, with their images fetched again.

    Args:
        run: the run folder.
        shard: the shard that the file is of.
        file: name of the file.
        settings: of the read stage.

    Returns:
        A unit with a fault, and without samples, where the store does not give the images.
    """
    start = time.perf_counter()
    footer = read_footer(run.fs, run.path("predictions", file))
    failed = _failed_samples(run, file)
    images: dict[int, bytes | Loss] = {}
    fault = None
    try:
        images = _fetch_images(run, shard, footer.unit, failed, settings)
    except (OSError, StoreFault) as error:
        fault = without_secrets(f"{type(error).__name__}: {error}")
        failed = []
    found = [images.get(sample.index) for sample in failed]
    fetched = [image for image in found if isinstance(image, bytes)]
    return Unit(
        shard_uri=shard.uri,
        shard_name=shard.name,
        number=footer.unit,
        last=footer.last,
        next_offset=footer.next_offset,
        next_index=footer.next_index,
        bytes_read=sum(map(len, fetched)),
        samples=_sample_table(failed, images, num_sidecars=len(settings.keep)),
        payload=np.frombuffer(b"".join(fetched), np.uint8),
        seconds={"read": time.perf_counter() - start},
        fault=fault,
    )


def _failed_samples(run: RunFolder, file: str) -> list[FailedSample]:
    with run.fs.open(run.path("predictions", file), "rb") as opened:
        rows = pq.read_table(opened, columns=[field.name for field in fields(FailedSample)])
    lasting = pc.is_in(rows["error"], pa.array(LASTING_ERRORS))
    worth_a_try = pc.and_(pc.is_valid(rows["error"]), pc.invert(lasting))
    return [FailedSample(**row) for row in rows.filter(worth_a_try).to_pylist()]


def _sample_table(failed: list[FailedSample], images: dict[int, bytes | Loss], num_sidecars: int) -> pa.Table:
    """Return the samples as SAMPLE. A sample that could not be fetched keeps its error."""
    rows = []
    for sample in failed:
        row = {
            "key": sample.key,
            "index": sample.index,
            "offset": sample.offset,
            "size": sample.size,
            "sidecars": [None] * num_sidecars,
            "error": sample.error,
            "error_detail": "could not be fetched again",
        }
        image = images.get(sample.index)
        if isinstance(image, bytes):
            row |= {"size": len(image), "error": None, "error_detail": None}
        elif image is not None and sample.error in LOSSES:
            row |= {"error": image.code, "error_detail": image.detail}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SAMPLE)


def _fetch_images(
    run: RunFolder, shard: Shard, number: int, failed: list[FailedSample], settings: ReadSettings
) -> dict[int, bytes | Loss]:
    """Return the encoded images of failed samples by index; images that are still too large are left out.
    A loose image that is lost has its loss in place of its bytes.

    A loose image is an object of its own, and an image in a tar is one range. Samples of compressed tars,
    of tables and of deflated members of zip archives have no range: their whole unit is read again.
    """
    if shard.is_page:
        return _fetch_objects(shard, failed, settings)
    if all(sample.offset is not None for sample in failed):
        return _fetch_ranges(shard, failed, settings)
    wanted = {sample.index for sample in failed}
    unit = _read_unit_again(run, shard, number, settings)
    return {index: image for index, image in _images_of(unit) if index in wanted}


def _fetch_objects(
    shard: Shard, failed: list[FailedSample], settings: ReadSettings
) -> dict[int, bytes | Loss]:
    fs, root = open_exact(shard.uri, settings.storage_options)
    members = {sample.index: shard.members[sample.index - shard.first_index] for sample in failed}

    def fetch(index: int) -> bytes | Loss:
        member = members[index]
        # A link that led nowhere was listed without a size, and may lead to an image by now.
        return read_image(fs, join(root, member["key"]), member["size"] or None)

    wanted = [index for index, member in members.items() if member["size"] <= settings.max_bytes]
    images: dict[int, bytes | Loss] = {}
    for index, image in _fetched(fs, wanted, fetch, lambda index: members[index]["size"]):
        if isinstance(image, Loss) or len(image) <= settings.max_bytes:
            images[index] = image
    return images


def _fetch_ranges(
    shard: Shard, failed: list[FailedSample], settings: ReadSettings
) -> dict[int, bytes | Loss]:
    fs, path = open_exact(shard.uri, settings.storage_options)
    places: dict[int, tuple[int, int]] = {}  # first byte and number of bytes, by index
    for sample in failed:
        if sample.offset is None or sample.size is None or sample.size > settings.max_bytes:
            continue
        if sample.error != "sparse_member":  # the bytes of a sparse member are not one range
            places[sample.index] = sample.offset, sample.size

    def fetch(index: int) -> bytes | Loss:
        begin, size = places[index]
        return with_retries(lambda: object_bytes(fs, path, begin, begin + size))

    return dict(_fetched(fs, places, fetch, lambda index: places[index][1]))


def _fetched(
    fs: fsspec.AbstractFileSystem,
    indexes: Iterable[int],
    fetch: Callable[[int], bytes | Loss],
    claim: Callable[[int], int],
) -> Iterator[tuple[int, bytes | Loss]]:
    """Yield each index with what was fetched for it; of a store, several are fetched at once."""
    if is_local(fs):
        return ((index, fetch(index)) for index in indexes)
    return fetched_ahead(indexes, fetch, claim)


def _read_unit_again(run: RunFolder, shard: Shard, number: int, settings: ReadSettings) -> Unit:
    begin = unit_begin(run, shard.name, number)
    unit = next(read_units(shard, settings, number, begin.position, begin.index, begin.in_group))
    if unit.fault:
        raise StoreFault(unit.fault)
    return unit


def _images_of(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """Yield index and encoded image of every good sample of a unit from the reader."""
    begin = 0
    for sample in unit.samples.to_pylist():
        if sample["error"] is None:
            end = begin + sample["size"]
            yield sample["index"], unit.payload[begin:end].tobytes()
            begin = end


# ---- merge ----------------------------------------------------------------------------------------------


def replace_rows(unit: Unit, settings: WriteSettings) -> Receipt:
    """Replace the rows of a unit of retried samples in the unit's file, and return the receipt.

    The file is left alone where every sample failed again.

    Raises:
        UserError: some units lie in files that are never changed.
    """
    if unit.fault:
        return make_receipt(unit, rows=0, errors={}, written=False)
    start = time.perf_counter()
    run = RunFolder(settings.output, settings.storage_options)
    run.units().refuse_change("--retry-errors")  # checked again: fetching the images took its time
    path = run.path("predictions", unit_file(unit.shard_name, unit.number, unit.last))
    retried = prediction_table(unit, settings)
    written = pc.count(retried["error"]).as_py() < retried.num_rows
    if written:
        footer = read_footer(run.fs, path)
        with run.fs.open(path, "rb") as file:
            merged = merge_rows(pq.read_table(file), retried, settings.keep)
        footer = replace(footer, errors=count_errors(merged))
        merged = merged.replace_schema_metadata({FOOTER_KEY: footer.to_json()})
        overwrite(run.fs, path, parquet_bytes(merged).to_pybytes())
    unit.seconds["write"] = time.perf_counter() - start
    return make_receipt(unit, rows=retried.num_rows, errors=count_errors(retried), written=written)


def merge_rows(rows: pa.Table, retried: pa.Table, keep: tuple[str, ...] = ()) -> pa.Table:
    """Return rows of a file, with the predictions of retried rows in place of those of the same index.

    Args:
        rows: of the file.
        retried: the rows of the samples that were tried again.
        keep: names of the sidecar columns, which another try does not read.
    """
    row_of_index = {index: row for row, index in enumerate(rows["index"].to_pylist())}
    replaced = [row_of_index[index] for index in retried["index"].to_pylist()]
    kept = rows.take(replaced)
    columns = []
    for field in rows.schema:
        is_predicted = field.name in PREDICTED_COLUMNS and field.name not in keep
        columns.append(retried[field.name].cast(field.type) if is_predicted else kept[field.name])
    new = pa.Table.from_arrays(columns, schema=rows.schema)
    both = pa.concat_tables([rows, new]).unify_dictionaries()
    order = list(range(rows.num_rows))
    for number, row in enumerate(replaced):
        order[row] = rows.num_rows + number
    return both.take(order).combine_chunks().cast(rows.schema)
