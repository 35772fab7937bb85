"""Tell what the head of other people's models means, and which channels their first layer takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from wordsworth.vit_model.checkpoint import BaseCheckpoint
from wordsworth.vit_model.config import ModelError, check_choice
from wordsworth.vit_model.foreign.class_names import TAGS, class_names, read_tags
from wordsworth.vit_model.foreign.hub_folder import CONFIG, read_json
from wordsworth.vit_model.head import HEAD_FROM, LABEL_NOTE, Head

Found = TypeVar("Found", bound=BaseCheckpoint)

# problem_type of transformers: the kind of the head.
KIND_OF_PROBLEM = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "value",
}


def with_transformers_head(found: Found, about: dict[str, Any]) -> Found:
    """Return the model with the head's kind and the class names that a config.json of transformers gives.

    Raises:
        ModelError: problem_type is none that transformers knows.
    """
    named = class_names(about, found.config.num_classes)
    extra = dict(found.extra)
    if named.note:
        extra[LABEL_NOTE] = named.note
    problem = about.get("problem_type")
    head = Head()
    if problem is not None:
        check_choice("problem_type", problem, KIND_OF_PROBLEM)
        head = Head(kind=KIND_OF_PROBLEM[problem])
    if head.kind != "softmax":
        extra[HEAD_FROM] = f"problem_type is {problem}"
    return replace(found, labels=named.labels, head=head, extra=extra)


def with_timm_head(found: Found, folder: Path) -> Found:
    """Return the model of a folder of timm's with what the folder says of its head, which timm does not read.

    `convert` writes the kind into the config.json. A tagger has a table of its tags beside it.

    Raises:
        ModelError: the table does not fit the model, or the kind is not known.
    """
    told = read_json(folder / CONFIG).get("head")
    if isinstance(told, dict) and "kind" in told:
        extra = found.extra | {HEAD_FROM: "config.json says so"}
        return replace(found, head=Head.from_dict(told), extra=extra)
    labels = read_tags(folder, found.config.num_classes)
    return found if labels is None else _as_tagger(found, labels)


def _as_tagger(found: Found, labels: tuple[str, ...]) -> Found:
    """Return a tagger: it has a sigmoid for each tag, which its config.json does not say.

    It takes images in the order blue, green, red: the kernels of the first layer are turned round.

    Raises:
        ModelError: no layer takes an image, or several do.
    """
    state = dict(found.state)
    first = [name for name, tensor in state.items() if tensor.ndim == 4 and tensor.shape[1] == 3]
    if len(first) != 1:
        raise ModelError(f"a {TAGS} is beside a model with {len(first)} layers that could take its images")
    state[first[0]] = state[first[0]].flip(1).contiguous()
    advice = "its own code pads images to a square, here the middle square of an image is taken"
    extra = found.extra | {HEAD_FROM: f"{TAGS} is beside its config.json; {advice}"}
    return replace(found, labels=labels, head=Head(kind="sigmoid"), state=state, extra=extra)
