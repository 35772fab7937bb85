"""Say how a command lists its sources, and look whether they are there. Imports neither torch nor Ray."""

from dataclasses import replace
from itertools import islice

from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.stages import ListSettings
from wordsworth.pipeline.output.frozen_listing import SAMPLE
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.source_lists import expand_sources, take_queries

MAX_SOURCES = 16  # sources that are looked at: each costs a store two requests


def with_expanded_sources(request: LabelRequest) -> LabelRequest:
    """Return the request with the sources that its lists and patterns stand for, all without queries."""
    sources, options = take_queries(
        expand_sources(request.sources, request.storage_options), request.storage_options
    )
    return replace(request, sources=sources, storage_options=options)


def list_settings(request: LabelRequest) -> ListSettings:
    """Return the settings of the list stage."""
    return ListSettings(
        sources=request.sources,
        format=request.format,
        image_keys=request.image_keys,
        storage_options=request.storage_options,
        rules=request.rules,
        folder=SAMPLE if request.sample else "shards",
    )


def refuse_missing_sources(request: LabelRequest) -> None:
    """List each of the first sources up to its first shard: that takes less than to load a model.

    Where the output holds a run, its listing is frozen, and a source may be gone.

    Raises:
        UserError: a source is not there, holds nothing to label, or may not be listed.
    """
    request = with_expanded_sources(request)
    if request.output and RunFolder(request.output, request.storage_options).plan():
        return
    for source in islice(request.sources, MAX_SOURCES):
        finder = list_settings(replace(request, sources=(source,))).finder()
        finder.most_images = 1
        for _ in islice(finder.shards(), 1):
            pass
