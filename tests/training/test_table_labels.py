"""Show that a training takes the names of its classes from a table of Hugging Face, and counts by them."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.support.samples import shard_of
from tests.support.tables import write_hugging_face
from tests.support.trainings import request
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.samples import ReadSettings
from wordsworth.pipeline.training.classes import train_target
from wordsworth.pipeline.training.settings import RUN, SNAPSHOT, frozen_settings, write_settings
from wordsworth.pipeline.training.survey import Survey, survey_shard
from wordsworth.pipeline.training.table_labels import table_labels

NAMES = ("zebra", "ant", "3", "1")  # the names of digits are not the numbers of their classes


@pytest.fixture
def shard(tmp_path):
    columns = {"image": [b"1"] * 4, "label": [0, 1, 3, 3]}
    return shard_of(write_hugging_face(tmp_path / "t.parquet", columns, {"label": list(NAMES)}))


def test_classes_are_counted_by_the_names_of_the_table_in_its_order(tmp_path, shard):
    asked = request(tmp_path, target="label")
    assert table_labels(asked, [shard]) == NAMES
    reading = ReadSettings(unit_rows=4, keep=("label",), class_names=True)
    rows, met = survey_shard(shard, reading, "label")
    assert rows == 4 and met == {"zebra": 1, "ant": 1, "1": 2}
    target, notes = train_target("label", met, NAMES, of_table=True)
    assert [target.number(name) for name in NAMES] == [0, 1, 2, 3] and target.classes == 4
    assert "1 of 4 classes have no sample, first class 2 (3)" in notes
    with pytest.raises(UserError, match=r"1 of 4 classes have no sample, first class 2 \(3\): mend"):
        train_target("label", Counter(["zebra", "ant", "1"]), NAMES)


def test_names_are_left_where_there_are_labels_or_none_belong_to_the_target(tmp_path, shard):
    for change in ({"labels": ("a", "b", "c", "d")}, {"target": "cls"}, {"target": "folder"}):
        assert table_labels(replace(request(tmp_path, target="label"), **change), [shard]) is None


def test_a_training_that_was_begun_without_names_goes_on_without_them(tmp_path, shard):
    data = Survey(shards=(shard,), rows={shard.name: 4}, classes=Counter())
    for labels in (None, NAMES):
        asked = replace(request(tmp_path, target="label"), output=str(tmp_path / str(labels)), labels=labels)
        write_settings(asked, frozen_settings(asked, data, None))
        (tmp_path / str(labels) / RUN / SNAPSHOT).write_text("{}")
        assert table_labels(replace(asked, labels=None), [shard]) == labels
