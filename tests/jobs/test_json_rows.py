"""Rows in JSON have numbers that a person reads, and nothing that JSON does not know."""

import json

import pyarrow as pa

from wordsworth.jobs.json_rows import json_rows


def test_numbers_are_as_short_as_their_type_allows():
    best = pa.struct([("label", pa.string()), ("score", pa.float32())])
    table = pa.table(
        {
            "score": pa.array([0.001, float("nan"), None], pa.float32()),
            "mean": pa.array([0.1, 0.0010000000474974513, None]),
            "embedding": pa.array([[0.1, 2.0], None, [0.0, 1e-4]], pa.list_(pa.float16(), 2)),
            "topk": pa.array([[{"label": "cat", "score": 0.3}], [], None], pa.list_(best)),
            "tags": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        }
    )
    lines = [json.dumps(row) for row in json_rows(table)]
    assert lines == [
        '{"score": 0.001, "mean": 0.1, "embedding": [0.1, 2.0], '
        '"topk": [{"label": "cat", "score": 0.3}], "tags": [["a", 1]]}',
        '{"score": null, "mean": 0.0010000000474974513, "embedding": null, "topk": [], "tags": null}',
        '{"score": null, "mean": null, "embedding": [0.0, 0.0001], "topk": null, "tags": []}',
    ]
