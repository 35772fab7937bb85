"""Show how kept columns get their names in the output."""

import pytest

from wordsworth.jobs.options import RunOptions
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.plan import asked_for
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.sources.kept_columns import output_name, source_name
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig


def asked(*keep: str, **options) -> dict:
    config = ViTConfig(
        image_size=(32, 32), patch_size=16, width=8, depth=1, heads=1, mlp_dim=8, num_classes=2
    )
    model = random_checkpoint(config, Preprocessing(), 0)
    request = LabelRequest(command="label", sources=("a",), output="b", model="m", keep=keep, **options)
    return asked_for(request, model)


def test_a_kept_column_has_the_name_that_is_given_for_it():
    kept = RunOptions(keep=" JSON, Label=Given ,a=b=C,").kept
    assert kept == ("json", "label=Given", "a=b=C")
    assert list(map(source_name, kept)) == ["json", "label", "a=b"]
    assert list(map(output_name, kept)) == ["json", "Given", "C"]
    assert asked(*kept)["keep"] == list(kept)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("txt", "label"), "--keep label: every row has a column label already: --keep label=NAME keeps"),
        (("a=key",), "--keep a=key: every row has a column key already: --keep a=NAME keeps"),
        (("a", "b=a"), "--keep gives two columns the name a: COLUMN=NAME renames one"),
    ],
)
def test_a_name_that_is_taken_is_refused_with_the_remedy(keep, message):
    with pytest.raises(UserError) as refused:
        asked(*keep)
    assert str(refused.value).startswith(message) and refused.value.exit_code == 2


def test_a_name_is_taken_only_where_a_run_has_the_column():
    assert asked("embedding")["keep"] == ["embedding"]
    with pytest.raises(UserError, match="embedding=NAME"):
        asked("embedding", embedding="float16")
