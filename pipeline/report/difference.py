"""Define what two runs differ in, as records of numbers and examples."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """Name one of the two runs.

    Attributes:
        path: the run folder, without credentials.
        model: the model.
        run_id: of the plan.
        num_rows: rows.
        is_complete: whether the run is finished.
    """

    path: str
    model: str
    run_id: str
    num_rows: int
    is_complete: bool


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """Hold a row that both runs have. Where the image lies is of the first run.

    Attributes:
        key, shard, index, offset, size: place of the image.
        label_a, label_b: its best class in each run; None without one.
        score_a, score_b: the scores; None without one.
        cosine: between its embeddings; None where they were not asked for.
        truth: its class; None where it has none, or labels are not compared with classes.
    """

    key: str
    shard: str
    index: int | None
    offset: int | None
    size: int | None
    label_a: str | None
    label_b: str | None
    score_a: float | None
    score_b: float | None
    cosine: float | None = None
    truth: str | None = None


@dataclass(frozen=True, kw_only=True)
class RowExample:
    """Hold a row of one run.

    Attributes:
        key, shard, index: its place.
        error, error_detail: its error; None without one.
    """

    key: str
    shard: str
    index: int | None
    error: str | None
    error_detail: str | None


@dataclass(frozen=True, kw_only=True)
class RowsOfOne:
    """Count rows that are of one run only, or that have an error in one run only.

    Attributes:
        num: the rows.
        examples: some of them.
    """

    num: int
    examples: list[RowExample]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Count the images that went from one label to another.

    Attributes:
        label_a, label_b: the labels in the first and the second run.
        num: images.
        share: of all images with a label in both runs.
        examples: those of which both models are most sure.
        num_better, num_worse: those that became right, and wrong; None where labels are not compared with
            classes.
    """

    label_a: str
    label_b: str
    num: int
    share: float
    examples: list[PairExample]
    num_better: int | None = None
    num_worse: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Count the images on which two labels were exchanged, in either direction.

    Attributes:
        labels: the two labels.
        num: images.
        num_forth: of them, those that went from the first label to the second.
        num_back: of them, those that went from the second label to the first.
        share: of all images that changed their label.
    """

    labels: tuple[str, str]
    num: int
    num_forth: int
    num_back: int
    share: float


@dataclass(frozen=True, kw_only=True)
class LabelShift:
    """Compare the scores of one label.

    Attributes:
        label: the label.
        num_a, num_b: images to which each run gave the label.
        mean_a, mean_b: mean of their scores.
        psi: population stability index of the scores (`shifts.stability_index`).
    """

    label: str
    num_a: int
    num_b: int
    mean_a: float
    mean_b: float
    psi: float


@dataclass(frozen=True, kw_only=True)
class ScoreShift:
    """Compare the scores of images with a label in both runs.

    Attributes:
        psi: population stability index of all scores.
        mean_a, mean_b: mean scores.
        labels: labels with enough images in both runs, the largest shift first; the first ones.
        num_labels: labels with enough images.
        num_rare: labels with too few images to compare.
        least_rows: images that are enough.
    """

    psi: float
    mean_a: float
    mean_b: float
    labels: list[LabelShift]
    num_labels: int
    num_rare: int
    least_rows: int


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Compare the embeddings of images that have one in both runs, by the cosine.

    Attributes:
        num: images with a cosine.
        num_undefined: images in which an embedding is zero or not finite.
        mean: mean cosine; None without images.
        quantiles: cosines by the share of images that are below.
        farthest: images whose embeddings moved most.
    """

    num: int
    num_undefined: int
    mean: float | None
    quantiles: dict[str, float]
    farthest: list[PairExample]


@dataclass(frozen=True, kw_only=True)
class SideAccuracy:
    """Say how often the labels of one of the runs are right.

    Attributes:
        num_right: images whose label is their class.
        accuracy: their share.
        interval: its 95% interval (Wilson 1927).
        calibration_error: the expected calibration error (Guo et al. 2017).
        bins: of the score, of equal width: images, sum of their scores and right ones.
    """

    num_right: int
    accuracy: float
    interval: list[float]
    calibration_error: float
    bins: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class TruthDifference:
    """Say which of the two runs is right about the same images.

    Attributes:
        where: where the class of an image stands.
        read_from: "A" or "B": the run in whose rows it stands.
        reading: by which names, for people.
        num_images: images with a label in both runs and a class.
        num_left_out: images with a label in both runs that have no class to compare with.
        notes: what is left out and what is not known, for people.
        a, b: the accuracy of each run, on these images.
        num_both_right, num_only_a_right, num_only_b_right, num_both_wrong: images by which run is right.
        change: the accuracy of B minus that of A.
        change_interval: its 95% interval (Agresti and Min 2005).
        p_value: of McNemar's exact test that the runs are equally good.
        became_wrong, became_right: images on which only A, and only B, is right: those of which B is most
            sure.
    """

    where: str
    read_from: str
    reading: str
    num_images: int
    num_left_out: int
    notes: list[str]
    a: SideAccuracy
    b: SideAccuracy
    num_both_right: int
    num_only_a_right: int
    num_only_b_right: int
    num_both_wrong: int
    change: float
    change_interval: list[float]
    p_value: float
    became_wrong: list[PairExample] = field(default_factory=list)
    became_right: list[PairExample] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Say what two runs differ in.

    Attributes:
        a, b: the runs.
        has_labels: whether both runs have labels; else their embeddings alone are compared.
        has_same_classes: whether both models have one list of classes; else labels are compared by text.
        num_joined: rows that both runs have.
        num_by_index: of them, rows whose key stands several times in its shard: joined by the index too.
        num_unclear: rows that could not be joined: the other run has their key, but several times and with
            other indices.
        only_a, only_b: rows of one run alone, those that could not be joined among them.
        errors_a, errors_b: joined rows with an error in one run alone.
        num_errors_both: joined rows with an error in both runs.
        num_unlabelled: joined rows without an error of which a run has no label.
        num_labelled: rows with a label in both runs.
        num_agree: of them, rows with the same label.
        agreement: the share of `num_agree` in `num_labelled`; None without rows.
        agreement_interval: its 95% interval (Wilson 1927).
        num_flips: rows with another label.
        flip_share: their share in `num_labelled`.
        num_flip_kinds: different pairs of labels among them.
        flips: the most frequent of these pairs.
        confused: the worst pairs, whichever label came first.
        scores: how the scores shifted; None without scores.
        drift: how the embeddings moved; None where a run has none.
        truth: which run is right; None where labels are not compared with classes.
        seconds: seconds that the comparison took.
    """

    a: ComparedRun
    b: ComparedRun
    has_labels: bool
    has_same_classes: bool
    num_joined: int
    num_by_index: int
    num_unclear: int
    only_a: RowsOfOne
    only_b: RowsOfOne
    errors_a: RowsOfOne
    errors_b: RowsOfOne
    num_errors_both: int
    num_unlabelled: int
    num_labelled: int
    num_agree: int
    agreement: float | None
    agreement_interval: list[float] | None
    num_flips: int
    flip_share: float | None
    num_flip_kinds: int
    flips: list[Flip] = field(default_factory=list)
    confused: list[ConfusedPair] = field(default_factory=list)
    scores: ScoreShift | None = None
    drift: Drift | None = None
    truth: TruthDifference | None = None
    seconds: float = 0.0
