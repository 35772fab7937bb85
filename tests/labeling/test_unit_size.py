"""Show how large units are: small where a source has few images, so that its first rows come soon."""

import math

import pytest

from wordsworth.pipeline.labeling.plan import asked_for, make_plan
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.frozen_listing import FirstPage, PageMetadata
from wordsworth.pipeline.prediction.gpu_trial import GpuWay
from wordsworth.pipeline.sources.passed_over import PassedOver
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig

GB = 10**9
MOST = 664  # images of 224 x 224 whose patches take 96 MiB, in whole batches of 8


def unit_rows(source_bytes: float, gpu: GpuWay | None = None, **asked) -> int:
    config = ViTConfig(width=8, depth=1, heads=1, mlp_dim=8)
    model = random_checkpoint(config, Preprocessing(), 0)
    request = LabelRequest(command="label", sources=("x",), output="out", model="m", **asked)
    plan = make_plan(asked_for(request, model), request, model, {"CPU": 4.0}, gpu, source_bytes)
    return plan.resolved.unit_rows


@pytest.mark.parametrize(
    ("source_bytes", "rows"),
    [(0, 128), (0.08 * GB, 128), (1 * GB, 312), (2 * GB, 624), (3 * GB, MOST), (math.inf, MOST)],
)
def test_a_source_of_few_images_has_small_units_and_a_large_one_has_large_ones(source_bytes, rows):
    assert unit_rows(source_bytes) == rows


def test_what_is_asked_for_counts_and_a_unit_has_whole_batches():
    assert unit_rows(0, unit_rows=500) == 500
    assert unit_rows(0, batch_size=96) == 96
    assert unit_rows(0, batch_size=200) == 200


def test_a_gpu_gets_as_many_images_as_ever():
    way = GpuWay(precision="bf16", modes=("plain",), batch_size=64)
    assert unit_rows(0, way) == unit_rows(math.inf, way) == 640


def page(kind: str, ended: bool) -> FirstPage:
    shards = [Shard(kind=kind, uri=f"/x/{number}", size=10, version="v") for number in range(3)]
    return FirstPage(shards=shards, ended=ended, metadata=PageMetadata.of_listing(PassedOver()))


def test_the_size_of_a_source_is_known_where_its_listing_ends_and_its_shards_hold_the_images():
    assert page("tar", True).source_bytes == page("images", True).source_bytes == 30
    assert page("tar", False).source_bytes == math.inf
    assert page("table", True).source_bytes == page("named", True).source_bytes == math.inf
