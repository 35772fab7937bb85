"""Find the class of an image among the classes of a model, and say by which names the images have them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from wordsworth.pipeline.errors import plural
from wordsworth.pipeline.sources.class_target import (
    Target,
    index_in,
    name_in,
    normalised,
    numbers_of_unique,
    read_digits_as_names,
)
from wordsworth.pipeline.sources.wordnet import wordnet_ids, words_of

NO_CLASS = -1  # number of the class of an image that has none, as in the tables of Hugging Face

# Kinds of names by which images have their classes.
LABELS = "names of labels"
PLACES = "places in the labels"
IDS = "WordNet ids"
OTHERS = "names of labels in other writing"


@dataclass(frozen=True)
class ModelTarget(Target):
    """Say where the class of each image stands, and by which names the classes of a model go.

    `digits_are_names` is None until all names of a data set are known: then either reading will do.

    Attributes:
        ids: numbers of the classes by their WordNet ids
        others: numbers of the classes by other names, as `plain` gives them
        kept_as: column of predictions in which the class stands, where that is not the name in the source
    """

    ids: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    kept_as: str | None = None

    def number(self, name: str | None) -> int | None:
        """Return the number of the class of a name; NO_CLASS for an image without one, None for no name."""
        if name is None or name == str(NO_CLASS):
            return NO_CLASS
        return self._named(name)[0]

    def of(self, rows: pa.Table) -> np.ndarray:
        """Return the classes of rows of predictions, NO_CLASS for an image without one.

        Returns:
            int64 array (rows,)

        Raises:
            UserError: a class is not one of the model's. The message names the first such row.
        """
        return self._numbers(
            rows[self.column].to_pylist(),
            lambda row: f"{rows['shard'][row].as_py()}: sample {rows['key'][row].as_py()}",
        )

    @property
    def column(self) -> str:
        """Return the column of predictions in which the class stands."""
        return self.kept_as or (self.sidecars[0] if self.sidecars else "key")

    def names(self, rows: pa.Table) -> Counter[str | None]:
        """Count rows of predictions by the name of their class; None counts those without a class."""
        found = Counter(name_in(self.where, text) for text in rows[self.column].to_pylist())
        found[None] += found.pop(str(NO_CLASS), 0)
        return found

    def settled(self, names: Iterable[str | None]) -> "ModelTarget":
        """Return the target that reads digits one way, which all names of the data set decide."""
        given = [name for name in names if name is not None]
        return replace(self, digits_are_names=read_digits_as_names(self.where, given, self.labels))

    def describe(self, names: Counter[str | None]) -> str:
        """Say in one line by which names the images have their classes."""
        given = [name for name in names if name is not None]
        met = {self._named(name)[0] for name in given}
        kinds, remarks = self.kinds(given)
        line = f"{kinds}: {len(met)} of the model's {self.classes} classes occur{remarks}"
        if names[None]:
            line += (
                f"; {plural(names[None], 'image without a class is', 'images without a class are')} left out"
            )
        return line

    def kinds(self, names: Iterable[str]) -> tuple[str, str]:
        """Say of which kinds names of classes are, such as "cls holds names of labels".

        Returns:
            The kinds, and remarks that begin with a semicolon, perhaps none.
        """
        kinds: dict[str, set[str]] = {}
        for name in names:
            kinds.setdefault(self._named(name)[1], set()).add(name)
        parts = [f"{kind} ({len(given)})" if len(kinds) > 1 else kind for kind, given in kinds.items()]
        subject = "folders are" if self.where == "folder" else f"{self.where} holds"
        remarks = ""
        if any(self._is_ambiguous(name) for name in kinds.get(PLACES, ())):
            remarks += "; numbers are taken as places, though labels have such names"
        if any(self._is_ambiguous(name) for name in kinds.get(LABELS, ())):
            remarks += "; numbers are taken as names, not as places"
        if IDS in kinds and not self.labels:
            remarks += "; the labels have no names and are taken for ImageNet's"
        return f"{subject} {' and '.join(parts)}", remarks

    def _named(self, name: str) -> tuple[int | None, str]:
        """Return the number of the class of a name, None for no class, and the kind of the name."""
        if name.isdecimal() and not self.digits_are_names:
            place = index_in(name, self.classes)
            if place is not None or self.digits_are_names is not None:
                return place, PLACES
        number = self.label_number(name)
        if number is not None or (self.labels or ()).count(name):  # a name of two labels is no other name
            return number, LABELS
        if name in self.ids:
            return self.ids[name], IDS
        return self.others.get(plain(name)), OTHERS

    def _is_ambiguous(self, name: str) -> bool:
        """Tell whether a name of digits could be read in two ways, to different ends."""
        if not name.isdecimal():
            return False
        place = index_in(name, self.classes)
        named = self.label_number(name)
        return place is not None and named is not None and place != named


def model_target(where: str, labels: tuple[str, ...] | None, classes: int) -> ModelTarget:
    """Return what finds the class of an image among the classes of a model.

    Args:
        where: as in `Target`
        labels: the model's
        classes: number of the model's classes
    """
    ids = wordnet_ids(labels, classes)
    written = [plain(label) for label in labels or ()]
    others = {plain(word): number for word, number in words_of(ids).items() if plain(word) not in written}
    others |= numbers_of_unique(written)
    return ModelTarget(where, labels, classes, digits_are_names=None, ids=ids, others=others)


def plain(name: str) -> str:
    """Return a name without what people write differently: upper case, underscores, hyphens, spaces."""
    return " ".join(re.split(r"[\s_-]+", normalised(name).casefold())).strip()
