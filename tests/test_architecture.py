"""Hold the arrows between rooms: an import points down, at the top of a file and inside a function alike."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down. A room may import rooms of the lines below its own, and no room of its own line.
FLOORS = [
    {"wordsworth"},
    {"jobs"},
    {"verification"},
    {"labeling", "compaction", "report"},
    {"output", "training"},
    {"prediction", "sources"},
    {"images", "cluster", "storage"},
    {"unit", "errors", "vit_model"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
RAYS_PRIVATE_NAMES = ("ray._private", "ray._common", "ray._raylet", "._internal", "unittest.mock")


def modules() -> dict[str, Path]:
    """Return the file of every module of ours, by its dotted name."""
    found = {}
    for top in ("wordsworth", "jobs", "pipeline", "vit_model"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if top == "wordsworth" else ("wordsworth", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that is imported, lazy imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def room(module: str) -> str | None:
    """Return the room of a module of ours; None for others' modules and for packages that hold only rooms."""
    parts = module.split(".")
    if parts[0] != "wordsworth" or module == "wordsworth.pipeline":
        return None
    if len(parts) == 1 or parts[1] == "__main__":
        return "wordsworth"
    return parts[2] if parts[1] == "pipeline" else parts[1]


def test_every_room_stands_on_a_floor():
    assert {room(module) for module in MODULES} - {None} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(set(FLOOR)))
def test_a_room_imports_only_rooms_below_it(name: str):
    upward = []
    for module, path in MODULES.items():
        if room(module) != name:
            continue
        for imported in imports(ast.parse(path.read_text())):
            other = room(imported)
            if other not in (None, name) and FLOOR[other] <= FLOOR[name]:
                upward.append(f"{module} imports {imported}")
    assert upward == []


@pytest.mark.slow
def test_no_module_imports_itself_by_way_of_others():
    graph = {}
    for module, path in MODULES.items():
        graph[module] = {name for name in imports(ast.parse(path.read_text())) if name in MODULES} - {module}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_an_upward_import_would_be_seen():
    tree = ast.parse("def late():\n    from wordsworth.pipeline.labeling.plan import LabelRequest\n")
    (imported,) = imports(tree)
    assert FLOOR[room(imported)] < FLOOR["sources"]


@pytest.mark.slow
def test_one_folder_knows_the_insides_of_ray():
    knowing = []
    for module, path in MODULES.items():
        for name in imports(ast.parse(path.read_text())):
            if any(private in name for private in RAYS_PRIVATE_NAMES) and room(name) is None:
                knowing.append(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"ray\._[\w.]+", str(node.value)):
                knowing.append(module)
    folder = "wordsworth.pipeline.cluster.ray_internals."
    assert [module for module in knowing if not f"{module}.".startswith(folder)] == []


def test_the_distribution_has_every_package():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages | {"wordsworth.recipes"}, "and the recipes, which are data"
