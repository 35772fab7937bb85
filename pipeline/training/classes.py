"""Number the classes that a training's samples name."""

from collections import Counter

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.sources.class_target import (
    MAX_DIGITS,
    Target,
    labels_of,
    normalised,
    read_digits_as_names,
)
from wordsworth.pipeline.storage.filesystem import StorageOptions, open_filesystem, without_credentials
from wordsworth.pipeline.storage.small_files import read_small_text

SHOWN = 4  # names that a note shows


def class_names(
    labels: str | None, sources: list[str], storage_options: StorageOptions
) -> tuple[str, ...] | None:
    """Return the names of the classes: of a file, or of labels.txt beside the first source, or None.

    Raises:
        UserError: `labels` is no file, or a file names no class or has an empty line between names.
    """
    folder = sources[0].rpartition("/")[0] or "."
    candidates = [labels] if labels else [f"{sources[0].rstrip('/')}/labels.txt", f"{folder}/labels.txt"]
    for uri in candidates:
        fs, path = open_filesystem(uri, storage_options)
        if fs.isfile(path):
            return _names_in(read_small_text(fs, path, without_credentials(uri)), without_credentials(uri))
    if labels:
        raise UserError(f"--labels {without_credentials(labels)}: no such file", exit_code=2)
    return None


def _names_in(text: str, file: str) -> tuple[str, ...]:
    """Return the lines of a file of labels. Empty lines at its end are no classes."""
    names = text.rstrip().splitlines()
    if not names:
        raise UserError(f"{file} names no class: one name a line is needed")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{file}, line {number} is empty: a class needs a name, or remove the line")
    return tuple(names)


def train_target(
    where: str, met: Counter[str], labels: tuple[str, ...] | None, of_table: bool = False
) -> tuple[Target, list[str]]:
    """Return what finds the class of a sample, and what the user should know of the classes.

    Without `labels` the names in the data become labels; numbers stay without labels.

    Args:
        where: where the class of a sample stands, as in `Target`.
        met: samples by the name of their class.
        labels: names of the classes, if the user or the data gave them.
        of_table: whether names and labels are those of a table's own metadata. Then every name is that of a
            label, and of a label without a sample a note is enough.

    Raises:
        UserError: a class is none of the labels, or a class has no sample.
    """
    names = {normalised(name) for name in met}
    named_by_data = None if labels else labels_of(names, where)
    labels = labels or named_by_data
    target = Target(
        where=where,
        labels=labels,
        classes=len(labels) if labels else _count_numbers(names, where),
        digits_are_names=bool(named_by_data) or of_table or read_digits_as_names(where, names, labels),
    )
    check_classes(met, target)
    lacking = _lacking(met, target)
    notes = _notes(met, target, named_by_data)
    if lacking and of_table:
        notes.append(lacking)
    elif lacking:
        raise UserError(f"{lacking}: {_remedy(target)}")
    return target, notes


def check_classes(met: Counter[str], target: Target, option: str = "") -> None:
    """Check that every class of the data is one of the known classes.

    Args:
        met: samples by the name of their class.
        target: finds the number of a class.
        option: that names the data, if it is not what the model learns from.

    Raises:
        UserError: a class is not known.
    """
    for name in sorted(met):
        if target.number(name) is None:
            alike = (target.labels or ()).count(name)
            known = "is only 1 label" if target.classes == 1 else f"are only {target.classes} labels"
            what = f"{alike} labels have this name" if alike else f"there {known}"
            where = f" in {option}" if option else ""
            raise UserError(f"class {name} occurs{where}, but {what}: mend the labels or the samples")


def _count_numbers(names: set[str], where: str) -> int:
    """Return the number of classes where the classes are numbers."""
    longest = max(names, key=len, default="")
    if len(longest) > MAX_DIGITS:
        raise UserError(
            f"class {longest[:MAX_DIGITS]}... is no number of a class: does --target {where} name one?"
        )
    return max(map(int, names), default=-1) + 1


def _lacking(met: Counter[str], target: Target) -> str | None:
    """Say how many classes have no sample; None where all have one."""
    numbers = {target.number(name) for name in met}
    num_empty = target.classes - len(numbers)
    if not num_empty:
        return None
    empty = next(number for number in range(target.classes) if number not in numbers)
    first = f"{empty} ({target.labels[empty]})" if target.labels else f"{empty}"
    return f"{num_empty} of {target.classes} classes have no sample, first class {first}"


def _remedy(target: Target) -> str:
    advice = "mend the labels or add samples"
    if not target.labels:
        advice += "; numbers count classes from 0, unless --labels FILE has them as names"
    return advice


# ---- notes ----


def _notes(met: Counter[str], target: Target, named_by_data: tuple[str, ...] | None) -> list[str]:
    notes = []
    spellings = Counter(map(normalised, met))
    for name in sorted(name for name, count in spellings.items() if count > 1):
        notes.append(f"class {name} is written in {spellings[name]} ways of Unicode: taken as one class")
    digits = any(name.isdecimal() for name in spellings)
    if not digits or not target.labels:
        return notes
    given = f"--target {target.where} gives numbers"
    if named_by_data:
        notes.append(f"{given}: taken as names, in the order of text: {_shown(named_by_data)}")
    elif target.digits_are_names:
        notes.append(f"{given} that are names of labels: taken as these")
    elif target.where == "folder" or any(label.isdecimal() for label in target.labels):
        notes.append(f"{given}: taken as places in the labels: {_shown(target.labels)}")
    return notes


def _shown(labels: tuple[str, ...]) -> str:
    parts = [f"class {number} is {label}" for number, label in enumerate(labels[:SHOWN])]
    if len(labels) > SHOWN:
        parts.append(f"... ({len(labels)} in all)")
    return ", ".join(parts)
