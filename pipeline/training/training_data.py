"""Find what a training learns from: list its sources, and count what they hold, beside the start of Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wordsworth.pipeline.images.decode import DecodeSettings
from wordsworth.pipeline.sources.class_target import target_sidecars
from wordsworth.pipeline.sources.finder import find_shards
from wordsworth.pipeline.sources.image_column import refuse_unused_columns
from wordsworth.pipeline.sources.passed_over import ListingRules
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.indexed import ShardCount
from wordsworth.pipeline.training.probe_images import ProbeImages, choose_images
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.stream import unit_rows
from wordsworth.pipeline.training.survey import Survey, count_quickly, cut_pages, survey
from wordsworth.pipeline.training.table_labels import table_labels


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Hold what the sources of a training hold, as far as it is known before Ray has started.

    Attributes:
        decode: how images become patches.
        reading: how shards are read.
        target: where the class of a sample stands; None for an objective without classes.
        named_by_table: labels that a table has for its numbers of classes; None where there are none.
        train: the shards to learn from.
        val: the shards of --val; none without --val.
        probe: the shards of --probe; none without --probe.
        probe_target: where the class of a sample of --probe stands.
        known: what is known of shards, by their names.
    """

    decode: DecodeSettings
    reading: ReadSettings
    target: str | None
    named_by_table: tuple[str, ...] | None
    train: list[Shard]
    val: list[Shard]
    probe: list[Shard]
    probe_target: str
    known: Mapping[str, ShardCount]

    def survey_train(self, by_shard: bool = False) -> Survey:
        """Count the shards to learn from; what is not known yet, in Ray tasks.

        Args:
            by_shard: keep the classes of each shard too.
        """
        return survey(self.train, self.reading, self.target, self._known_of(self.train), by_shard)

    def survey_val(self) -> Survey | None:
        """Count the shards of --val likewise; None without --val."""
        return survey(self.val, self.reading, self.target, self._known_of(self.val)) if self.val else None

    def choose_probe(self) -> ProbeImages | None:
        """Choose the images of --probe; None without --probe."""
        return choose_images(self.probe, self.reading, self.probe_target) if self.probe else None

    def _known_of(self, shards: list[Shard]) -> dict[str, ShardCount]:
        return {shard.name: self.known[shard.name] for shard in shards if shard.name in self.known}


def find_training_data(request: TrainRequest, note: Callable[[str], None]) -> TrainingData:
    """List the sources of a training, and count what is counted quickly. It needs no Ray.

    Args:
        request: what the user asked for.
        note: gets what the user should know of the sources.

    Raises:
        UserError: a source holds nothing to learn from, a sample has no class, or columns of tables are asked
            for where there is none.
    """
    decode = DecodeSettings(
        preprocessing=request.preprocessing,
        image_size=request.config.image_size,
        patch_size=request.config.patch_size,
    )
    train = _shards(request.sources, request, note)
    val = _shards(request.val, request, note) if request.val else []
    probe = _shards(request.probe, request, note) if request.probe else []
    kinds = {shard.kind for shards in (train, val, probe) for shard in shards}
    refuse_unused_columns(request.image_column, request.key, kinds)
    named_by_table = table_labels(request, train)
    reading = _read_settings(request, decode, class_names=named_by_table is not None)
    target = request.target if request.classified else None
    return TrainingData(
        decode=decode,
        reading=reading,
        target=target,
        named_by_table=named_by_table,
        train=train,
        val=val,
        probe=probe,
        probe_target=request.target,
        known=count_quickly(train, reading, target, note) | count_quickly(val, reading, target, note),
    )


def _shards(sources: tuple[str, ...], request: TrainRequest, note: Callable[[str], None]) -> list[Shard]:
    listing = find_shards(
        list(sources),
        format=request.format,
        image_keys=request.image_keys,
        storage_options=request.storage_options,
        rules=ListingRules(include_hidden=request.include_hidden, follow_links=request.follow_links),
    )
    for line in listing.passed_over.serious_notes():
        note(line)
    return cut_pages(listing.shards)


def _read_settings(request: TrainRequest, decode: DecodeSettings, class_names: bool) -> ReadSettings:
    return ReadSettings(
        unit_rows=unit_rows(decode),
        keep=target_sidecars(request.target) if request.classified else (),
        image_keys=request.image_keys,
        image_column=request.image_column,
        key=request.key,
        key_rule=request.key_rule,
        include_hidden=request.include_hidden,
        storage_options=request.storage_options,
        class_names=class_names,
    )
