"""What the tables share: the stored rows, and how a table is written."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def rows(name: str) -> list[dict[str, Any]]:
    """Return the stored rows of a benchmark."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text())


def table(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_settings(stored: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows of each run and its settings, which differ in their seeds."""
    groups = defaultdict(list)
    for row in stored:
        groups[row["run"], json.dumps(row["settings"])].append(row)
    return list(groups.values())


def settings(row: dict[str, Any]) -> str:
    """Return the settings of a row in one cell."""
    return ", ".join(f"{name}={value}" for name, value in row["settings"].items())
