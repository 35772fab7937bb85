"""Say the figures of a comparison in words, for the terminal and for the page."""

from wordsworth.pipeline.errors import plural, without_secrets
from wordsworth.pipeline.report.difference import (
    ComparedRun,
    Difference,
    Drift,
    SideAccuracy,
    TruthDifference,
)
from wordsworth.pipeline.report.html import percent
from wordsworth.pipeline.report.provenance import Facts

NO_LABELS = "a run has none: the embeddings alone are compared"


def overview_facts(found: Difference) -> Facts:
    """Return what was compared, and the figures of all rows."""
    return [
        ("A", _run(found.a)),
        ("B", _run(found.b)),
        ("in both runs", _joined(found)),
        *([("not joined", _unclear(found))] if found.num_unclear else []),
        ("only in A", f"{found.only_a.num:,}"),
        ("only in B", f"{found.only_b.num:,}"),
        ("errors", errors_told(found)),
        *([("without a label", f"{found.num_unlabelled:,}")] if found.num_unlabelled else []),
        *(_label_facts(found) if found.has_labels else [("labels", NO_LABELS)]),
        *(truth_facts(found.truth) if found.truth else []),
    ]


def _label_facts(found: Difference) -> Facts:
    return [
        ("classes", classes_told(found)),
        ("agreement", agreement_told(found)),
        ("changed labels", _flips(found)),
        *([("scores", scores_told(found))] if found.scores else []),
    ]


def truth_facts(truth: TruthDifference) -> Facts:
    """Return which run is right."""
    low, high = truth.change_interval
    change = f"{truth.change:+.2%} from A to B (95% interval {low:+.2%} to {high:+.2%}"
    return [
        ("images with a class", f"{truth.num_images:,}: in {truth.read_from}, {truth.reading}"),
        ("accuracy of A", _accuracy(truth.a)),
        ("accuracy of B", _accuracy(truth.b)),
        ("change", f"{change}; McNemar's exact test: p = {truth.p_value:.3g})"),
        ("became right", f"{plural(truth.num_only_b_right, 'image')}: A is wrong and B is right"),
        ("became wrong", f"{plural(truth.num_only_a_right, 'image')}: A is right and B is wrong"),
        *[("note", note) for note in truth.notes],
    ]


def _accuracy(side: SideAccuracy) -> str:
    low, high = side.interval
    return (
        f"{side.accuracy:.2%} (95% interval {low:.2%} to {high:.2%}), expected calibration error "
        f"{side.calibration_error:.4f}"
    )


def embedding_facts(drift: Drift) -> Facts:
    """Return the figures of the embeddings."""
    facts = [("compared", plural(drift.num, "image"))]
    if drift.num_undefined:
        facts.append(("without a direction", f"{drift.num_undefined:,} (zero or not finite)"))
    if drift.mean is not None:
        facts.append(("mean cosine", f"{drift.mean:.5f}"))
    for share, value in drift.quantiles.items():
        name = "least cosine" if share == "0" else f"{float(share):.0%} of the images below"
        facts.append((name, f"{value:.5f}"))
    return facts


def agreement_told(found: Difference) -> str:
    """Return the agreement with its interval."""
    if found.agreement is None or found.agreement_interval is None:
        return "no image has a label in both runs"
    low, high = found.agreement_interval
    return (
        f"{found.agreement:.3%} (95% interval {low:.3%} to {high:.3%}): {found.num_agree:,} of "
        f"{plural(found.num_labelled, 'image')} with a label in both runs"
    )


def classes_told(found: Difference) -> str:
    """Return by what labels are compared."""
    if found.has_same_classes:
        return "one list of classes"
    return "the lists of classes differ: labels are compared by their text"


def errors_told(found: Difference) -> str:
    """Return the errors of joined rows."""
    both = found.num_errors_both
    return f"{found.errors_a.num:,} only in A, {found.errors_b.num:,} only in B, {both:,} in both"


def scores_told(found: Difference) -> str:
    """Return the shift of all scores."""
    if found.scores is None:
        return "no scores"
    told = f"mean {found.scores.mean_a:.4f} in A, {found.scores.mean_b:.4f} in B, PSI {found.scores.psi:.4f}"
    rare = found.scores.num_rare
    if not rare:
        return told
    return f"{told}; {plural(rare, 'label')} with fewer than {found.scores.least_rows} images not compared"


def _run(run: ComparedRun) -> str:
    state = "" if run.is_complete else ", not complete: the rows that are there now"
    return f"{without_secrets(run.path)} ({plural(run.num_rows, 'row')}, {run.model}{state})"


def _joined(found: Difference) -> str:
    told = plural(found.num_joined, "row")
    if not found.num_by_index:
        return told
    return f"{told}, {found.num_by_index:,} of them by the index too, as their key is doubled in its shard"


def _unclear(found: Difference) -> str:
    return f"{plural(found.num_unclear, 'row')}: their key is doubled in its shard, with other indices"


def _flips(found: Difference) -> str:
    if found.flip_share is None:
        return "none"
    told = f"{found.num_flips:,} ({percent(found.flip_share)})"
    return f"{told}, of {plural(found.num_flip_kinds, 'kind')}" if found.num_flips else told
