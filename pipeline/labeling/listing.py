"""Say how a command lists its sources, and look whether they are there. Imports neither torch nor Ray."""

import os
from dataclasses import replace
from itertools import islice

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.labeling.stages import ListSettings
from wordsworth.pipeline.output.frozen_listing import SAMPLE
from wordsworth.pipeline.output.records import RunPlan
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.pipeline.sources.image_column import refuse_unused_columns
from wordsworth.pipeline.sources.source_lists import expand_sources, take_queries
from wordsworth.pipeline.storage.filesystem import is_local, open_filesystem

MAX_RENAMED = 1000  # sources that are looked for under other names
MAX_SOURCES = 16  # sources that are looked at: each costs a store two requests


def with_expanded_sources(request: LabelRequest) -> LabelRequest:
    """Return the request with the sources that its lists and patterns stand for, all without queries."""
    sources, options = take_queries(
        expand_sources(request.sources, request.storage_options), request.storage_options
    )
    return replace(request, sources=sources, storage_options=options)


def named_as_begun(request: LabelRequest, plan: RunPlan) -> LabelRequest:
    """Return the request with each source under the name that the run has for it.

    On this disk a file or folder has many names: with `..`, with `//`, by a link. The run goes on by its own.
    """
    if len(request.sources) > MAX_RENAMED:
        return request
    begun = {os.path.realpath(name): name for name in plan.asked["source"] if name.startswith("/")}
    return replace(request, sources=tuple(_begun_name(source, begun, request) for source in request.sources))


def _begun_name(source: str, begun: dict[str, str], request: LabelRequest) -> str:
    fs, path = open_filesystem(source, request.storage_options)
    if not is_local(fs) or path in begun.values():
        return source
    return begun.get(os.path.realpath(path), source)


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
        UserError: a source is not there, holds nothing to label, or may not be listed, the output holds
            something else than a run, or columns of tables are asked for where there is none.
    """
    request = with_expanded_sources(request)
    if request.output:
        folder = RunFolder(request.output, request.storage_options)
        foreign = folder.foreign()
        if folder.plan():  # in this order: a plan is older than all that its run writes
            return
        if foreign:
            raise UserError(f"{folder.uri} {foreign}")
    kinds = set()
    for source in islice(request.sources, MAX_SOURCES):
        finder = list_settings(replace(request, sources=(source,))).finder()
        finder.most_images = 1
        kinds |= {shard.kind for shard in islice(finder.shards(), 1)}
    if len(request.sources) <= MAX_SOURCES:  # the shards of a source are all of one kind
        refuse_unused_columns(request.image_column, request.key, kinds)
