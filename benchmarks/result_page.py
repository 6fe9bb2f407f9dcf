"""The pages in results/ that benchmarks write: a table, and the circumstances of its numbers."""

import sys
from collections.abc import Sequence

from mlsm.evaluation.circumstances import REPOSITORY, circumstances
from mlsm.evaluation.tables import as_markdown

__all__ = ["REPOSITORY", "circumstances", "table", "write"]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    listed = [dict(zip(header, map(str, row), strict=True)) for row in rows]
    return as_markdown(listed).rstrip("\n")


def write(name: str, text: str) -> None:
    """Write a page."""
    path = REPOSITORY / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.strip() + "\n")
    print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
