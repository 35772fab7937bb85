"""Write an explanation: its PNG files, and the page last, so that a page is there when all figures are."""

from wordsworth.pipeline.errors import UserError
from wordsworth.pipeline.report.explanation import Explanation
from wordsworth.pipeline.report.model_page import PAGE, explanation_page
from wordsworth.pipeline.storage.atomic import overwrite
from wordsworth.pipeline.storage.filesystem import (
    StorageOptions,
    absolute_uri,
    is_local,
    join,
    open_filesystem,
    without_credentials,
)
from wordsworth.pipeline.storage.refusals import naming


def write_explanation(found: Explanation, output: str, options: StorageOptions) -> list[str]:
    """Write the figures and the page into a folder, each file whole or not at all.

    Returns:
        The files: the page first.

    Raises:
        UserError: the folder cannot be written.
    """
    page = explanation_page(found).encode()
    fs, root = open_filesystem(output, options)
    if is_local(fs) and fs.isfile(root):
        raise UserError(f"--output {without_credentials(output)} is a file: name a folder", exit_code=2)
    files = [(figure.file, figure.png) for figure in found.figures] + [(PAGE, page)]
    with naming(output):
        for name, data in files:
            overwrite(fs, join(root, name), data)
    written = [without_credentials(absolute_uri(fs, join(root, name))) for name, _ in files]
    return [written[-1], *written[:-1]]
