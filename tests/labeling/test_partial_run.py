"""Show that a command which labels a part asks for nothing that needs the whole run."""

import pytest

from tests.support.runs import whole_run
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.partial_run import refuse_mixed_options, rows_done
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder


def request(**asked) -> LabelRequest:
    return LabelRequest(command="label", sources=("in",), output="out", model="m", **asked)


def test_a_part_is_one_part_and_is_neither_updated_nor_tried_again():
    with pytest.raises(UserError, match="give one of them"):
        refuse_mixed_options(request(limit=1, sample=1))
    for option in ("update", "replace_changed", "drop_missing", "retry_errors"):
        refuse_mixed_options(request(**{option: True}))
        for part in ("limit", "sample"):
            with pytest.raises(
                UserError, match=f"without --{part} first, then give --{option.replace('_', '-')}"
            ):
                refuse_mixed_options(request(**{part: 1, option: True}))


def test_the_rows_of_a_run_are_counted_no_further_than_asked(tmp_path, monkeypatch):
    run = RunFolder(str(whole_run(tmp_path).out))
    assert rows_done(run, 1000) == 13
    monkeypatch.setattr("wordsworth.pipeline.labeling.partial_run.FOOTERS", 1)
    assert rows_done(run, 4) == 4 and rows_done(run, 5) == 8
