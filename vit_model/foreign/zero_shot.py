"""Label with classes that are texts: a dual encoder's text tower makes the head of its image tower.

A class is the mean of the embeddings of its prompts. The scaled embeddings of all classes are the weights of
a linear layer over the image's embedding of length 1. So the text tower runs once, and never where images do.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from wordsworth.vit_model.checkpoint import BaseCheckpoint, Checkpoint
from wordsworth.vit_model.config import ModelError
from wordsworth.vit_model.foreign.module import ModuleCheckpoint
from wordsworth.vit_model.head import HEAD_FROM, Head

Note = Callable[[str], None]  # takes a line for the user

DEFAULT_PROMPT = "a photo of a {}"
PLACE = "{}"  # of the class in a prompt
IMAGENET = "imagenet"  # the name of the 1000 published names, and of the 80 published prompts
IMAGENET_SIMPLE = "imagenet-simple"  # 7 of the 80, which together do nearly as well
PACKAGES = "pip install 'wordsworth[zeroshot]'"
EQUAL_DECIMALS = 6  # embeddings that agree in so many decimals are equal
TEXTS_AT_ONCE = 64
LONG_SECONDS = 60  # of the text tower; a longer time is told
NUM_SHOWN = 3  # names that a message lists, at most


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Hold the classes that are asked for.

    Attributes:
        classes: their names, which are the labels.
        prompts: texts with one {} each, in whose place the name of a class stands.

    Raises:
        ModelError: there is no class or no prompt, or a prompt has not one {}.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ModelError("there is no class")
        if not self.prompts:
            raise ModelError("there is no prompt")
        for prompt in self.prompts:
            _check_prompt(prompt)

    def texts(self, name: str) -> list[str]:
        """Return the texts of a class."""
        return [prompt.replace(PLACE, name) for prompt in self.prompts]


def _check_prompt(prompt: str) -> None:
    named = re.search(r"\{\w[^{}]*\}", prompt)
    places = prompt.count(PLACE)
    if places == 1 and not named:
        return
    what = f"has {{}} {places} times" if places else "has no {}"
    if named:
        what = f"has {named[0]}"
    raise ModelError(f"prompt {prompt!r} {what}: the name of the class stands where it has one {{}}")


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """Hold the text tower of a dual encoder, and how its embeddings and those of images become scores.

    Attributes:
        called: of the model, in messages.
        embed: maps M texts to embeddings (M, D) in float64, of any length. A text that is longer than the
            context is cut.
        count_tokens: maps M texts to the numbers of their tokens, uncut.
        context: tokens of a text that the tower takes.
        scale: by which a cosine is multiplied.
        bias: which is added to the scaled cosine.
        head: how the sums become scores.
    """

    called: str
    embed: Callable[[Sequence[str]], torch.Tensor]
    count_tokens: Callable[[Sequence[str]], list[int]]
    context: int
    scale: float
    bias: float = 0.0
    head: Head


def published_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's 1000 classes that the prompts of CLIP were published with.

    Raises:
        ModelError: open_clip, which has them, is missing.
    """
    return tuple(_open_clip_metadata().IMAGENET_CLASSNAMES)


def published_prompts(name: str) -> tuple[str, ...]:
    """Return CLIP's published prompts for ImageNet: all 80, or the 7 of its authors' shorter choice.

    Args:
        name: IMAGENET or IMAGENET_SIMPLE.

    Raises:
        ModelError: open_clip, which has them, is missing.
    """
    metadata = _open_clip_metadata()
    chosen = {
        IMAGENET: metadata.OPENAI_IMAGENET_TEMPLATES,
        IMAGENET_SIMPLE: metadata.SIMPLE_IMAGENET_TEMPLATES,
    }
    return tuple(template(PLACE) for template in chosen[name])


def _open_clip_metadata() -> Any:
    try:
        from open_clip import zero_shot_metadata
    except ImportError as error:
        raise ModelError(f"open_clip has the names and prompts of ImageNet: {PACKAGES}") from error
    return zero_shot_metadata


def with_classes(found: BaseCheckpoint, tower: TextTower, asked: ZeroShot, note: Note) -> BaseCheckpoint:
    """Return a dual encoder's image tower with the classes as its head.

    Args:
        found: the image tower, without a head.
        tower: the text tower of the same model.
        asked: the classes.
        note: takes a line for the user.

    Raises:
        ModelError: the towers do not belong together, or the head would say nothing.
    """
    if tower.head.kind == "softmax" and len(asked.classes) == 1:
        raise ModelError(
            f"{asked.classes[0]!r} is the only class, to which a softmax gives 1 for every image: "
            f"name what the other images are too, such as '{asked.classes[0]},something else'"
        )
    _note_cut_texts(tower, asked, note)
    embeddings = class_embeddings(tower, asked, note)  # (K, D)
    if len(embeddings) > 1 and torch.allclose(embeddings, embeddings[:1], rtol=0, atol=1e-9):
        raise ModelError(
            f"{tower.called}: its tokenizer reads all classes as one text: it is of another model"
        )
    _note_equal_classes(asked.classes, embeddings, note)
    width = found.config.embedding_dim
    if embeddings.shape[1] != width:
        raise ModelError(
            f"{tower.called}: its text tower gives {embeddings.shape[1]} numbers a text and its image tower "
            f"{width} an image: they are not of one model"
        )
    state = found.state | {
        "head.weight": (embeddings * tower.scale).float(),
        "head.bias": torch.full((len(asked.classes),), tower.bias, dtype=torch.float64).float(),
    }
    extra = {
        name: told for name, told in found.extra.items() if name != "left_out"
    }  # the text tower was used
    extra |= {"zero_shot": {"classes": len(asked.classes), "prompts": list(asked.prompts)}}
    if tower.head.kind == "sigmoid":
        extra[HEAD_FROM] = "so was SigLIP trained"
    changed: dict[str, Any] = {
        "labels": asked.classes,
        "head": tower.head,
        "state": state,
        "extra": extra,
    }
    if isinstance(found, Checkpoint):
        own = replace(found.config, num_classes=len(asked.classes), normalize=True, head_bias=True)
        return replace(found, config=own, **changed)
    assert isinstance(found, ModuleCheckpoint)
    config = replace(found.config, num_classes=len(asked.classes), zero_shot=True)
    return replace(found, config=config, **changed)


@torch.no_grad()
def class_embeddings(tower: TextTower, asked: ZeroShot, note: Note) -> torch.Tensor:
    """Return an embedding of length 1 for each class, (K, D) in float64.

    In double precision, so that another machine or another number of threads gives the same float32 weights:
    a run that goes on elsewhere has to have the same fingerprint.
    """
    num_prompts = len(asked.prompts)
    at_once = max(1, TEXTS_AT_ONCE // num_prompts)  # classes
    begin = time.perf_counter()
    parts = []
    for first in range(0, len(asked.classes), at_once):
        names = asked.classes[first : first + at_once]
        texts = [text for name in names for text in asked.texts(name)]
        embedded = F.normalize(tower.embed(texts), dim=-1).reshape(len(names), num_prompts, -1)
        parts.append(F.normalize(embedded.mean(1), dim=-1))
        if first == 0:
            _note_long_work(asked, (time.perf_counter() - begin) / len(names), note)
    return torch.cat(parts)


def _note_long_work(asked: ZeroShot, seconds_a_class: float, note: Note) -> None:
    seconds = seconds_a_class * len(asked.classes)
    if seconds > LONG_SECONDS:
        texts = len(asked.classes) * len(asked.prompts)
        note(
            f"the text tower reads {texts:,} texts once, in about {seconds / 60:.0f} minutes: "
            "`wordsworth convert` with the same --model, --classes and --prompt keeps the result for all runs"
        )


def _note_cut_texts(tower: TextTower, asked: ZeroShot, note: Note) -> None:
    """Say which classes have a text that the tower cannot read to its end."""
    cut = []
    for name in asked.classes:
        longest = max(tower.count_tokens(asked.texts(name)))
        if longest > tower.context:
            cut.append(f"{name!r} ({longest} tokens)")
    if cut:
        more = f" and {len(cut) - NUM_SHOWN} more" if len(cut) > NUM_SHOWN else ""
        note(
            f"the text tower reads {tower.context} tokens, and so not the end of {', '.join(cut[:NUM_SHOWN])}"
            f"{more}: a shorter name or prompt is read whole"
        )


def _note_equal_classes(classes: tuple[str, ...], embeddings: torch.Tensor, note: Note) -> None:
    """Say which classes cannot be told apart, such as names that a tokenizer makes lower case."""
    first_of: dict[bytes, str] = {}
    equal = []
    for name, row in zip(classes, embeddings.numpy().round(EQUAL_DECIMALS), strict=True):
        first = first_of.setdefault(row.tobytes(), name)
        if first is not name:
            equal.append(f"{first!r} and {name!r}")
    if equal:
        more = f", and {len(equal) - 1} more pairs" if len(equal) > 1 else ""
        note(f"the text tower reads {equal[0]} as one text: their scores are equal{more}")


def dual_encoder_refusal(where: str | Path, why: str) -> ModelError:
    """Return the error of a model that --classes cannot be used with."""
    return ModelError(
        f"{where} {why}: --classes needs a model of images and texts, a CLIP, OpenCLIP or SigLIP "
        "(hf:NAME or a folder)"
    )
