"""Take the names of classes from a table that has them: one of Hugging Face's datasets."""

from wordsworth.pipeline.sources.class_labels import first_class_labels, labels_by_name
from wordsworth.pipeline.sources.class_target import target_sidecars
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.request import TrainRequest
from wordsworth.pipeline.training.settings import begun_settings


def table_labels(request: TrainRequest, shards: list[Shard]) -> tuple[str, ...] | None:
    """Return the labels that the first table has for its numbers of classes, where the user gave none.

    A training that was begun without labels goes on without them: an earlier version did not read them.

    Args:
        request: what is asked for
        shards: where the training images are
    """
    if not request.classified or request.labels:
        return None
    begun = begun_settings(request)
    if begun is not None and not begun["labels"]:
        return None
    named = labels_by_name(first_class_labels(shards, request.storage_options))
    column = "".join(target_sidecars(request.target)).lower()
    return named.get(column)
