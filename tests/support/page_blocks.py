"""Take the blocks of a page of documentation and run those of one tool, in this process or in another's.

A block begins with a comment that is its title, as in `# Polars: count by label`. The word before the colon
is the tool. The blocks of a tool follow each other in one namespace, or in one connection of DuckDB.

    python -m tests.support.page_blocks docs/PAGE.md TOOL CHECKS     CHECKS is a module with CHECKS
"""

import importlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(r"^```(\w+)\n(?:#|--) ([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```\w", re.MULTILINE)

Check = Callable[[dict[str, Any]], None]


class Block(NamedTuple):
    """Hold one block.

    Attributes:
        title: its first line, such as "Polars: count by label".
        language: python, sql or sh.
        code: its other lines.
    """

    title: str
    language: str
    code: str

    @property
    def tool(self) -> str:
        """Return what runs the block."""
        return self.title.partition(":")[0]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in their order.

    Raises:
        ValueError: a block has no title, or two blocks have one title.
    """
    text = page.read_text()
    found = [Block(title, language, code) for language, title, code in BLOCK.findall(text)]
    titles = {block.title for block in found}
    if len(titles) != len(FENCE.findall(text)):
        raise ValueError(f"{page.name}: a block has no title, or the title of another")
    return found


def run_blocks(blocks: list[Block], checks: dict[str, Check]) -> None:
    """Run the blocks of one tool, one after the other, in the working directory, and check what each gave."""
    names: dict[str, Any] = {}
    for block in blocks:
        RUNNERS[block.language](block.code, names)
        checks[block.title](names)


def _run_python(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "<block>", "exec"), names)


def _run_sql(code: str, names: dict[str, Any]) -> None:
    """Run statements of DuckDB's SQL, and leave the rows of the last one as `found`."""
    import duckdb

    connection = names.setdefault("connection", duckdb.connect())
    result = None
    for statement in connection.extract_statements(code):
        result = connection.execute(statement)
    assert result is not None
    columns = [column[0] for column in result.description]
    names["found"] = [dict(zip(columns, row, strict=True)) for row in result.fetchall()]


def _run_shell(code: str, names: dict[str, Any]) -> None:
    """Run commands of this package, each on a line of its own."""
    from wordsworth.jobs.cli import run

    for line in code.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "wordsworth" and run(arguments) == 0, line


RUNNERS = {"python": _run_python, "sql": _run_sql, "sh": _run_shell}


if __name__ == "__main__":
    page, tool, module = sys.argv[1:]
    run_blocks(
        [block for block in blocks_of(Path(page)) if block.tool == tool],
        importlib.import_module(module).CHECKS,
    )
