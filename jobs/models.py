"""wordsworth models: the variants, and what they cost."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table


def models(
    *,
    image_size: Annotated[int, Parameter(help="Pixels a side.")] = 224,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)] = False,
) -> int:
    """List the variants: layers, width, heads, MLP, parameters and GFLOPs of one forward pass (1000 classes)."""
    from vit_model.config import PATCH_SIZES, VARIANTS, macs, num_params, variant

    rows = []
    for name in VARIANTS:
        for patch in PATCH_SIZES:
            if image_size % patch:
                continue
            config = variant(f"{name}/{patch}", image_size=image_size)
            rows.append(
                {
                    "variant": f"{name}/{patch}",
                    "layers": config.depth,
                    "width": config.width,
                    "heads": config.heads,
                    "mlp": config.mlp_dim,
                    "parameters": num_params(config),
                    "gflops": round(2 * macs(config) / 1e9, 2),
                }
            )
    if json_:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("variant", "layers", "width", "heads", "MLP", "parameters", "GFLOPs", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        million = f"{row['parameters'] / 1e6:.1f} M"
        table.add_row(*map(str, list(row.values())[:5]), million, f"{row['gflops']:.1f}")
    Console(highlight=False).print(table)
    return 0


if __name__ == "__main__":
    from jobs.cli import main_of

    main_of("models")
