"""Say what the numbers of a model's head mean: how its logits become scores. Imports no torch."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from wordsworth.vit_model.config import ModelError, check_choice, check_names

HEAD_KINDS = ("softmax", "sigmoid", "value")
DEFAULT_THRESHOLD = 0.5
# Fields of a checkpoint's `extra`.
HEAD_FROM = "head_from"  # what told the kind of the head
LABEL_NOTE = "label_note"  # what the user should know of the class names, once the model was loaded


@dataclass(frozen=True, kw_only=True)
class Head:
    """Hold the kind of a head, which the logits do not tell.

    Attributes:
        kind: one of HEAD_KINDS. "softmax": an image has one class, the scores of all classes add up to 1.
            "sigmoid": an image has any number of classes, and each score is for itself. "value": the output
            is a number and not a class (a regression).
        threshold: score in [0, 1] from which on an image has a class, for "sigmoid".

    Raises:
        ModelError: a value that cannot be used.
    """

    kind: str = "softmax"
    threshold: float = DEFAULT_THRESHOLD

    def __post_init__(self) -> None:
        check_choice("the kind of the head", self.kind, HEAD_KINDS)
        if isinstance(self.threshold, str) or not 0 <= self.threshold <= 1:
            raise ModelError(f"the threshold of the head is {self.threshold!r}; it must be from 0 to 1")
        object.__setattr__(self, "threshold", float(self.threshold))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; empty for a softmax, since model folders are older than this record."""
        return {} if self == Head() else asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the head that `to_dict` wrote."""
        return cls(**check_names(cls, values))
