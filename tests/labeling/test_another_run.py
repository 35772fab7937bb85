"""A command that is not the one of a run is refused, with the names and the options that differ."""

from dataclasses import replace

import pytest

from tests.support.runs import made_up_plan
from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.labeling.plan import asked_for, refuse_another_run
from wordsworth.pipeline.labeling.request import LabelRequest
from wordsworth.pipeline.output.run_folder import RunFolder
from wordsworth.vit_model.checkpoint import random_checkpoint
from wordsworth.vit_model.config import Preprocessing, ViTConfig

CONFIG = ViTConfig(image_size=(32, 32), patch_size=8, width=32, depth=1, heads=4, mlp_dim=64, num_classes=2)
MODEL = replace(random_checkpoint(CONFIG, Preprocessing(), 0), labels=("cat", "dog"))
OTHER = replace(random_checkpoint(CONFIG, Preprocessing(), 1), labels=("cat", "dog"))
OF_MODEL, OF_OTHER = MODEL.fingerprint()[:16], OTHER.fingerprint()[:16]


def request(**changes) -> LabelRequest:
    given = {"command": "label", "sources": ("/in",), "output": "/out", "model": "S/16"}
    return LabelRequest(**given | changes)


@pytest.mark.parametrize(
    ("begun", "now", "model", "told"),
    [
        ({}, {"model": "Ti/16"}, OTHER, "model was S/16 and is Ti/16"),
        (
            {},
            {},
            OTHER,
            f"the weights of model S/16 differ (fingerprint was {OF_MODEL} and is {OF_OTHER})",
        ),
        ({"embedding": "float16"}, {}, MODEL, "--embeddings was given and is not now"),
        ({}, {"embedding": "float16"}, MODEL, "--embeddings was not given and is now"),
        ({"embedding": "float16"}, {"embedding": "float32"}, MODEL, "--dtype was float16 and is float32"),
        ({}, {"top_k": 3}, MODEL, "--top-k was 5 and is 3"),
        ({}, {}, replace(MODEL, labels=("cat", "cow")), "the labels of the model differ"),
        ({}, {"sources": ("/a",)}, MODEL, "source was /in and is /a"),
    ],
)
def test_what_differs_is_told_by_its_name(tmp_path, begun, now, model, told):
    plan = replace(made_up_plan(asked_for(request(**begun), MODEL)), model="S/16")
    asked = request(**now)
    folder = RunFolder(str(tmp_path))
    with pytest.raises(UserError) as refused:
        refuse_another_run(folder, plan, asked_for(asked, model), model, asked.model)
    assert refused.value.message == (
        f"{folder.uri} holds another run: {told}. Choose a new --output, or repeat the first command"
    )
