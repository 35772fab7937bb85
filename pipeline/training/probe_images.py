"""Choose the images of --probe before the workers start: which ones, their classes, and who is held out.

The choice depends on the sources alone, not on the training's seed. So trainings that differ in their recipe
are probed by the same images.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from wordsworth.pipeline.cluster.claims import RETRIES
from wordsworth.pipeline.errors import UserError, plural
from wordsworth.pipeline.sources.class_target import (
    class_name,
    class_text,
    normalised,
    target_sidecars,
)
from wordsworth.pipeline.sources.samples import ReadSettings, StoreFault
from wordsworth.pipeline.sources.shards import Shard
from wordsworth.pipeline.training.survey import (
    BYTES_READ_HERE,
    SHARDS_PER_TASK,
    Survey,
    bytes_to_read,
    check_few,
    shard_samples,
)

MOST_IMAGES = 10_000  # images of a probe
HELD_OUT = 0.2  # share of a class that the probes are tried on; at least one image
LEAST_IMAGES = 25  # images of a probe: 20 neighbours vote, and some are tried
LEAST_OF_CLASS = 2  # images of a class: one to learn from, and one to be tried
SEED = 0  # of the choice
NO_CLASS = -1  # number of a sample that cannot be read


@dataclass(frozen=True, kw_only=True)
class ProbeImages:
    """Hold the images of a probe. Rows are the images in the order of the shards, N in all.

    Attributes:
        survey: the shards that hold images of the probe, with only these images in them.
        classes: (N,) number of each image's class, from 0.
        held_out: (N,) whether an image is tried on; the probes learn from the others.
        num_found: images of the sources, chosen or not.
    """

    survey: Survey
    classes: np.ndarray
    held_out: np.ndarray
    num_found: int

    @property
    def first_rows(self) -> list[int]:
        """Return the row of each shard's first image, in the order of the shards."""
        counts = [self.survey.rows[shard.name] for shard in self.survey.shards]
        return np.cumsum([0, *counts[:-1]]).tolist()

    @property
    def digest(self) -> str:
        """Return the sha256 of the images, their classes and the split."""
        parts = [self.survey.digest.encode(), self.classes.tobytes(), self.held_out.tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def describe(self) -> str:
        """Return one line about the images, for the user."""
        num_images = len(self.classes)
        of_all = f" of {self.num_found:,}" if num_images < self.num_found else ""
        num_tried = int(self.held_out.sum())
        return (
            f"--probe: {num_images:,}{of_all} images of {len(self.survey.classes):,} classes; "
            f"the probes learn from {num_images - num_tried:,} and are tried on {num_tried:,}"
        )


def choose_images(
    shards: list[Shard], reading: ReadSettings, where: str, limit: int = MOST_IMAGES
) -> ProbeImages:
    """Read the classes of all images, and choose and divide the images of a probe.

    Args:
        shards: of --probe.
        reading: how the training reads shards.
        where: where a class stands, as in `Target`.
        limit: images that are chosen, at most.

    Raises:
        UserError: an image has no class, there are too few images, or one class, or a class has one image.
    """
    numbers, names = _numbered(_found_classes(shards, replace(reading, keep=target_sidecars(where)), where))
    counts = np.zeros(len(names), np.int64)
    for of_shard in numbers:
        counts += np.bincount(of_shard[of_shard != NO_CLASS], minlength=len(names))
    _check_enough(names, counts, limit)
    places = _chosen(numbers, _quotas(counts, limit))
    cut, rows, classes = [], {}, [np.zeros(0, np.int64)]
    for shard, of_shard, chosen in zip(shards, numbers, places, strict=True):
        if len(chosen):
            cut.append(_with_images(shard, chosen))
            rows[cut[-1].name] = len(chosen)
            classes.append(of_shard[chosen])
    of_rows = np.concatenate(classes)
    met = Counter({names[number]: count for number, count in Counter(of_rows.tolist()).items()})
    return ProbeImages(
        survey=Survey(shards=tuple(cut), rows=rows, classes=met),
        classes=of_rows,
        held_out=hold_out(of_rows),
        num_found=sum(map(len, numbers)),
    )


# ---- the classes of all images ----

_Found = list[tuple[list[str], np.ndarray]]  # of each shard: names, and for each sample the place of its name


def _found_classes(shards: list[Shard], reading: ReadSettings, where: str) -> _Found:
    """Read the names of the classes of all samples; of a large source in Ray tasks."""
    if sum(bytes_to_read(shard, reading) for shard in shards) <= BYTES_READ_HERE:
        return _classes_of_shards(shards, reading, where)
    import ray

    task = ray.remote(num_cpus=0.5, **RETRIES)(_classes_of_shards)
    parts = [shards[begin : begin + SHARDS_PER_TASK] for begin in range(0, len(shards), SHARDS_PER_TASK)]
    found: _Found = []
    for classes in ray.get([task.remote(part, reading, where) for part in parts]):
        found.extend(classes)
    return found


def _classes_of_shards(shards: list[Shard], reading: ReadSettings, where: str) -> _Found:
    return [_classes_of_shard(shard, reading, where) for shard in shards]


def _classes_of_shard(shard: Shard, reading: ReadSettings, where: str) -> tuple[list[str], np.ndarray]:
    """Return the names of a shard's classes, and for each sample the place of its name; NO_CLASS for none.

    Raises:
        UserError: a sample has no class, or the shard cannot be read.
    """
    places: dict[str, int] = {}
    of_samples: list[int] = []
    try:
        for sample in shard_samples(shard, reading):
            if sample.error is not None:
                of_samples.append(NO_CLASS)
                continue
            text = class_text(where, sample.key, sample.sidecars)
            name = class_name(where, text, f"--probe {shard.uri}: sample {sample.key}")
            of_samples.append(places.setdefault(normalised(name), len(places)))
            check_few(len(places), shard, where)
    except (OSError, StoreFault) as error:
        raise UserError(f"--probe {shard.uri} could not be read: {error}") from error
    return list(places), np.array(of_samples, np.int32)


def _numbered(found: _Found) -> tuple[list[np.ndarray], list[str]]:
    """Number the classes of all shards in the order of their names.

    Returns:
        The number of each sample's class, by shard, NO_CLASS for none; and the names.
    """
    names = sorted({name for of_shard, _ in found for name in of_shard})
    number_of = {name: number for number, name in enumerate(names)}
    numbers = []
    for of_shard, places in found:
        known = np.array([*(number_of[name] for name in of_shard), NO_CLASS], np.int64)
        numbers.append(known[places])  # NO_CLASS takes the last one
    return numbers, names


def _check_enough(names: list[str], counts: np.ndarray, limit: int) -> None:
    """Check that a probe can be made of so many images of each class.

    Raises:
        UserError: it cannot.
    """
    if counts.sum() < LEAST_IMAGES:
        raise UserError(
            f"--probe has {plural(counts.sum(), 'image')} that can be read: "
            f"a probe needs {LEAST_IMAGES} at least"
        )
    if len(names) < 2:
        raise UserError(f"--probe has one class only, {names[0]}: a probe tells classes apart")
    if counts.min() < LEAST_OF_CLASS:
        name = names[int(counts.argmin())]
        raise UserError(
            f"class {name} of --probe has 1 image: a probe needs two of each class, "
            "one to learn from and one to be tried; add one, or leave this one out"
        )
    if LEAST_OF_CLASS * len(names) > limit:
        raise UserError(
            f"--probe has {len(names):,} classes: with two images of each they are more than the {limit:,} "
            "images of a probe; give fewer classes"
        )


# ---- the choice ----


def _quotas(counts: np.ndarray, limit: int) -> np.ndarray:
    """Return how many images of each class are chosen: the same share of all, but two at least."""
    if counts.sum() <= limit:
        return counts
    quotas = np.maximum(limit * counts // counts.sum(), LEAST_OF_CLASS)
    while quotas.sum() > limit:  # the classes of two have made it too many
        quotas[quotas.argmax()] -= 1
    return quotas


def _chosen(numbers: list[np.ndarray], quotas: np.ndarray) -> list[np.ndarray]:
    """Choose samples until the quota of each class is full: of as few shards as that takes.

    A probe reads the shards again whenever it is made.

    Returns:
        Of each shard the places of the chosen samples, in order.
    """
    rng = np.random.default_rng(SEED)
    left = quotas.copy()
    places = [np.zeros(0, np.int64) for _ in numbers]
    for shard in rng.permutation(len(numbers)):
        if not left.any():
            break
        order = rng.permutation(len(numbers[shard]))
        taken = []
        for place, number in zip(order.tolist(), numbers[shard][order].tolist(), strict=True):
            if number != NO_CLASS and left[number]:
                left[number] -= 1
                taken.append(place)
        places[shard] = np.array(sorted(taken), np.int64)
    return places


def _with_images(shard: Shard, places: np.ndarray) -> Shard:
    """Return a shard of these images alone."""
    if shard.is_page:
        members = tuple(shard.members[place] for place in places)
        return replace(shard, members=members, size=sum(member["size"] for member in members))
    return replace(shard, picks=tuple(places.tolist()))


def hold_out(classes: np.ndarray) -> np.ndarray:
    """Hold out a share of each class: (N,) classes -> (N,) whether an image is held out."""
    rng = np.random.default_rng(SEED)
    held_out = np.zeros(len(classes), bool)
    for number in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == number))
        held_out[rows[: max(1, round(HELD_OUT * len(rows)))]] = True
    return held_out
