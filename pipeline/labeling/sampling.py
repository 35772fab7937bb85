"""Label a sample of the source: `--sample`. Its listing is one of its own, in _run/sample/.

The same command without `--sample` removes the sample and labels all. Few images are so labelled twice, and
no rule of a run has to know of the sample.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from wordsworth.pipeline.cluster.claims import RETRIES
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.labeling.listing import list_settings
from wordsworth.pipeline.labeling.progress import Progress
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.frozen_listing import (
    SAMPLE,
    FrozenListing,
    PageMetadata,
    split_into_pages,
)
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.lottery import Lottery, count_samples
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard

SHARDS_PER_TASK = 8  # shards that one task counts
SHARDS_AT_ONCE = 1024  # shards of a listing that are counted together


@dataclass(frozen=True, kw_only=True)
class DrawnSample:
    """Hold a sample before its listing is written.

    Attributes:
        shards: the shards of the sample.
        metadata: what the listing passed over, and how the sample was drawn.
    """

    shards: list[Shard]
    metadata: PageMetadata

    def freeze(self, listing: FrozenListing) -> None:
        """Freeze the listing of the sample, unless another job has frozen one.

        Raises:
            UserError: a part of another sample is frozen.
        """
        if listing.complete:
            return
        for number, (page, last) in enumerate(split_into_pages(self.shards, math.inf)):
            metadata = self.metadata if number == 0 else PageMetadata(sample=self.metadata.sample)
            if not listing.put(number, page, last=last, metadata=metadata):
                raise UserError(f"{listing.run.uri} holds a sample of other sources: choose a new --output")


def draw_sample(request: LabelRequest, progress: Progress) -> DrawnSample:
    """Draw samples from all sources.

    Tars, archives and tables are read once, since nobody knows how many samples they have.

    Raises:
        UserError: a source cannot be listed, or a shard cannot be read.
    """
    finder = list_settings(request).finder()
    lottery = Lottery(request.sample or 0, request.sample_seed)
    reading = _reading(request)
    shards = finder.shards()
    num_counted = 0
    while part := list(islice(shards, SHARDS_AT_ONCE)):
        for shard, count in zip(part, _counts(part, reading, request.cluster.decode_on), strict=True):
            lottery.add(shard, count)
            num_counted += not shard.is_page
    counted = f" in shards of which {num_counted:,} were read to count them" if num_counted else ""
    progress.note(f"--sample {request.sample}: drawn from {plural(lottery.num_samples, 'image')}{counted}")
    metadata = PageMetadata.of_listing(finder.passed_over)
    drawn = [request.sample or 0, request.sample_seed]
    return DrawnSample(shards=list(lottery.draw()), metadata=replace(metadata, sample=drawn))


def _reading(request: LabelRequest) -> ReadSettings:
    return ReadSettings(
        unit_rows=1,
        image_keys=request.image_keys,
        storage_options=request.storage_options,
        image_column=request.image_column,
        key=request.key,
        key_rule=request.key_rule,
        include_hidden=request.include_hidden,
    )


def _counts(shards: list[Shard], reading: ReadSettings, labels: Mapping[str, str]) -> Iterator[int]:
    """Yield the number of samples of each shard. Ray tasks count those that have to be read, on nodes with
    these labels."""
    import ray

    to_read = [shard for shard in shards if not shard.is_page]
    where = {"label_selector": dict(labels)} if labels else {}
    task: Any = ray.remote(num_cpus=0.5, **RETRIES, **where)(_count_shards)
    tasks = []
    for begin in range(0, len(to_read), SHARDS_PER_TASK):
        tasks.append(task.remote(to_read[begin : begin + SHARDS_PER_TASK], reading))
    counts = (count for counted in tasks for count in ray.get(counted))
    for shard in shards:
        yield 0 if shard.is_page else next(counts)


def _count_shards(shards: list[Shard], reading: ReadSettings) -> list[int]:
    counts = []
    for shard in shards:
        try:
            counts.append(count_samples(shard, reading))
        except (OSError, StoreFault) as error:
            raise UserError(f"{shard.uri} could not be read to count its samples: {error}") from error
    return counts


def refuse_another_sample(folder: RunFolder, request: LabelRequest) -> None:
    """Check that a folder holds nothing but the sample that is asked for, or no images yet.

    Raises:
        UserError: it holds another sample, or a run of all images.
    """
    if FrozenListing(folder).files():
        raise UserError(
            f"{folder.uri} has images from the first on, and no sample: choose a new --output", exit_code=2
        )
    listing = FrozenListing(folder, SAMPLE)
    for path in listing.files()[:1]:
        number, seed = listing.metadata(path).sample
        if (number, seed) != (request.sample, request.sample_seed):
            raise UserError(
                f"{folder.uri} holds a sample of {plural(number, 'image')}, drawn with --sample-seed {seed}: "
                "ask for that one, choose a new --output, or leave out --sample to label all",
                exit_code=2,
            )


def remove_sample(folder: RunFolder, progress: Progress) -> None:
    """Remove the sample that a folder holds, if it does: all images are to be labelled there."""
    listing = FrozenListing(folder, SAMPLE)
    if not listing.files():
        return
    progress.note("the sample in this folder gives way to the run of all images")
    folder.remove_shards({shard.id for shard in listing.shards()})
    folder.remove_records("_run", SAMPLE)  # last, so that a command that is killed here begins again
