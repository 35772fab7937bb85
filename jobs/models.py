"""Run `wordsworth models`: list the variants and their cost."""

import json
import re
from typing import Annotated, Any

from cyclopts import Parameter, validators
from rich.table import Table

from wordsworth.jobs.config_file import recipes
from wordsworth.jobs.options import JsonFlag
from wordsworth.jobs.terminal import Terminal, data_text
from wordsworth.pipeline.errors import UserError


def models(
    *,
    image_size: Annotated[int, Parameter(help="Pixels a side.", validator=validators.Number(gte=1))] = 224,
    json_: JsonFlag = False,
) -> int:
    """List the variants: layers, width, heads, MLP, parameters, GFLOPs of a forward pass (1000 classes).

    Below them stand the recipes, which --config takes by their names.
    """
    rows = _rows(image_size)
    if not rows:
        raise UserError(f"--image-size {image_size}: no variant has patches that divide it: give 224", 2)
    if json_:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("variant", "layers", "width", "heads", "MLP", "parameters", "GFLOPs", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        sizes = [str(row[name]) for name in ("variant", "layers", "width", "heads", "mlp")]
        table.add_row(*sizes, f"{row['parameters'] / 1e6:.1f} M", f"{row['gflops']:.1f}")
    terminal = Terminal()
    terminal.print(table)
    terminal.print("A multiplication and an addition are two FLOPs; lists of GMACs count them as one.")
    terminal.print()
    terminal.print(_recipes())
    return 0


def _recipes() -> Table:
    """Return a table of the recipes: the command of each, and the first sentence of its file."""
    table = Table("--config", "for", "what it does", box=None)
    for name, path in recipes().items():
        header = path.read_text(encoding="utf-8").split("\n\n")[0]
        first = " ".join(header.split("\n#\n")[0].replace("# ", "").split())
        command = re.findall(r"wordsworth (\w+) .*--config", header)
        table.add_row(
            name, data_text(*command), data_text(re.split(r"(?<=[\w)\"]{2})[.:] ", first)[0].rstrip("."))
        )
    return table


def _rows(image_size: int) -> list[dict[str, Any]]:
    """Return what --json prints: one dict for each variant whose patch size divides the image size."""
    from wordsworth.vit_model.cost import macs, num_params
    from wordsworth.vit_model.variants import HYBRIDS, PATCH_SIZES, VARIANTS, variant

    names: list[str] = []
    for size in VARIANTS:
        names += [f"{size}/{patch_size}" for patch_size in PATCH_SIZES]
    rows = []
    for name in [*names, *HYBRIDS]:
        if image_size % int(name.split("/")[1]):
            continue
        config = variant(name, image_size)
        rows.append(
            {
                "variant": name,
                "layers": config.depth,
                "width": config.width,
                "heads": config.heads,
                "mlp": config.mlp_dim,
                "parameters": num_params(config),
                "gflops": round(2 * macs(config) / 1e9, 2),
            }
        )
    return rows
