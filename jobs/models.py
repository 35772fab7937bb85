"""wordsworth models: the variants, and what they cost."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table


def models(
    *,
    image_size: Annotated[int, Parameter(help="Pixels a side.")] = 224,
    json_: Annotated[
        bool, Parameter(name="--json", help="Print JSON.", negative="", show_default=False)
    ] = False,
) -> int:
    """List the variants: layers, width, heads, MLP, parameters and GFLOPs of one forward pass (1000 classes)."""
    from wordsworth.vit_model.config import HYBRIDS, PATCH_SIZES, VARIANTS, macs, num_params, variant

    names = [f"{size}/{patch}" for size in VARIANTS for patch in PATCH_SIZES] + list(HYBRIDS)
    configs = {name: variant(name, image_size) for name in names if image_size % int(name.split("/")[1]) == 0}
    rows = [
        {
            "variant": name,
            "layers": config.depth,
            "width": config.width,
            "heads": config.heads,
            "mlp": config.mlp_dim,
            "parameters": num_params(config),
            "gflops": round(2 * macs(config) / 1e9, 2),
        }
        for name, config in configs.items()
    ]
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
    from wordsworth.jobs.cli import main_of

    main_of("models")
