"""Make the page of a model that is explained by images: its figures with what they say, in one file."""

from datetime import UTC, datetime

from wordsworth.pipeline.cluster.package import package_version
from wordsworth.pipeline.report.explanation import Explanation, Figure
from wordsworth.pipeline.report.html import data_uri, percent, render

PAGE = "explain.html"  # name of the file


def explanation_page(found: Explanation) -> str:
    """Return the page as HTML."""
    images = []
    for number, image in enumerate(found.images, 1):
        images.append(
            {
                "id": f"image-{number}",
                "name": image.name,
                "size": f"{image.width} x {image.height} pixels",
                "told": image.told,
                "best": [(name, percent(score), score) for name, score in image.best if name is not None],
                "figures": [_shown(figure) for figure in image.figures],
            }
        )
    sections = [("images", "Images"), ("model", "The model"), ("made", "How it was made")]
    if found.notes:
        sections.insert(2, ("not-drawn", "Not drawn"))
    return render(
        "explain.html.j2",
        model=found.model,
        sections=sections,
        images=images,
        model_figures=[_shown(figure) for figure in found.model_figures],
        notes=found.notes,
        facts=[
            *found.facts,
            ("made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, wordsworth {package_version()}"),
        ],
    )


def _shown(figure: Figure) -> dict[str, str]:
    return {"uri": data_uri(figure.png), "file": figure.file, "caption": figure.caption, "alt": figure.alt}
