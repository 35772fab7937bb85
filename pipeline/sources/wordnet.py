"""Find the WordNet ids of a model's classes, such as n01440764: ImageNet's folders are named by them.

The ids and their words are data files of timm. They are read as files, because to import timm takes seconds.
Where timm has no such files, no class has an id.
"""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# The file of the ids in the order of the classes, by the size of a head that was trained on ImageNet.
ID_FILES = {
    1000: "imagenet_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",
    11821: "imagenet12k_synsets.txt",
    21841: "imagenet22k_synsets.txt",
    21842: "imagenet22k_ms_synsets.txt",
    21843: "imagenet21k_goog_synsets.txt",
}
WORDS_FILE = "imagenet_synset_to_lemma.txt"  # lines of an id, a tab and the words, with commas between
ID = re.compile(r"(n\d{8})(?:$|[\s_,:-]+)(.*)")  # an id at the begin of a label, and the label's rest
IN_ORDER = 0.5  # share of the labels with ImageNet's words at their places, from which on all are ImageNet's


def wordnet_ids(labels: Sequence[str] | None, classes: int) -> dict[str, int]:
    """Return the numbers of a model's classes by their WordNet ids, as far as they are known.

    The labels say it: they are ids; or they are ImageNet's words in ImageNet's order; or words that are those
    of one id of ImageNet's 1000. The classes of a model without labels are in the order of the ids of a
    head of its size.
    """
    if labels:
        own = [match[1] if (match := ID.match(label)) else None for label in labels]
        if any(own):
            return _numbers(own)
    ids = _lines(ID_FILES.get(classes, ""))
    if len(ids) == classes and (not labels or _in_order(labels, ids)):
        return _numbers(ids)
    return _by_words(labels or ())


def words_of(ids: dict[str, int]) -> dict[str, int]:
    """Return the numbers of classes by the single words of their ids; a word of two classes is left out."""
    words = _words()
    owners: dict[str, set[int]] = {}
    for id, number in ids.items():
        for word in words.get(id, "").split(", "):
            owners.setdefault(word, set()).add(number)
    return {word: min(numbers) for word, numbers in owners.items() if word and len(numbers) == 1}


def _numbers(ids: Sequence[str | None]) -> dict[str, int]:
    counts = Counter(ids)
    return {id: number for number, id in enumerate(ids) if id and counts[id] == 1}


def _in_order(labels: Sequence[str], ids: Sequence[str]) -> bool:
    words = _words()
    agreeing = 0
    for label, id in zip(labels, ids, strict=True):
        if set(label.casefold().split(", ")) & set(words.get(id, "").casefold().split(", ")):
            agreeing += 1
    return agreeing >= IN_ORDER * len(labels)


def _by_words(labels: Sequence[str]) -> dict[str, int]:
    """Return the numbers of labels by the one id of ImageNet's 1000 that has these words, or such a word."""
    words = _words()
    owners: dict[str, list[str]] = {}
    for id in _lines(ID_FILES[1000]):
        whole = words.get(id, "").casefold()
        for word in {whole, *whole.split(", ")}:
            owners.setdefault(word, []).append(id)
    found: list[str | None] = []
    for label in labels:
        candidates = owners.get(label.casefold().replace("_", " "), [])
        found.append(candidates[0] if len(candidates) == 1 else None)
    return _numbers(found)


# ---- timm's files ----


def _words() -> dict[str, str]:
    """Return the words of every id."""
    return dict(line.split("\t", 1) for line in _lines(WORDS_FILE))


def _lines(name: str) -> list[str]:
    timm = find_spec("timm")
    if not name or timm is None or timm.origin is None:
        return []
    path = Path(timm.origin).parent / "data" / "_info" / name
    return path.read_text("utf-8").splitlines() if path.is_file() else []
