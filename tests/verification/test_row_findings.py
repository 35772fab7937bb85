"""row_findings: a row has a prediction of every kind or an error, and never both."""

import pyarrow as pa
import pytest

from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.verification.row_findings import row_findings

ENTRY = pa.struct([("label_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())])


def findings(name: str, column: pa.Array, errors: list) -> list[tuple[str, str, int]]:
    shard = Shard(kind="tar", uri="/a.tar", size=1, version="1")
    columns = {
        "shard": pa.array(["/a.tar"] * len(errors)),
        "index": pa.array(range(len(errors))),
        name: column,
        "error": pa.array(errors, pa.string()),
    }
    return list(row_findings(pa.table(columns), shard))


@pytest.mark.parametrize(
    ("name", "kind", "given"),
    [
        ("label_id", pa.int32(), 3),
        ("labels", pa.list_(ENTRY), []),
        ("labels", pa.list_(ENTRY), [{"label_id": 1, "label": "a", "score": 0.75}]),
        ("value", pa.float32(), 0.0),
        ("embedding", pa.list_(pa.float16(), 2), [0.0, 0.0]),
    ],
)
def test_a_prediction_of_every_kind_is_there_just_where_there_is_no_error(name, kind, given):
    assert findings(name, pa.array([given, None], kind), [None, "empty"]) == []
    assert findings(name, pa.array([None, given, None], kind), [None, "empty", None]) == [
        ("missing_prediction", f"{name} of the row with index 0", 2),
        ("prediction_on_error", f"{name} of the row with index 1", 1),
    ]


@pytest.mark.parametrize("name", ["labels", "value"])
def test_a_sidecar_under_the_name_of_a_prediction_is_none(name):
    assert findings(name, pa.array([None, "a text"]), [None, "empty"]) == []
