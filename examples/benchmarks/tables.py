"""Write the tables of docs/benchmarks.md from the results under docs/results.

Of errors, of costs, of adapters and of global learning there is a file each, with a builder for
every table.

    python examples/benchmarks/tables.py
"""

import re

import _tables_adapters
import _tables_costs
import _tables_errors
import _tables_global
from _tables import DOCS

BUILDERS = {
    **_tables_errors.BUILDERS,
    **_tables_costs.BUILDERS,
    **_tables_adapters.BUILDERS,
    **_tables_global.BUILDERS,
}


def fill(text: str) -> str:
    """Replace what stands between the markers of each table."""
    for name, build in BUILDERS.items():
        pattern = rf"(<!-- {name} -->(\n?)).*?(<!-- end -->)"
        new = f"\\g<1>{build()}\\g<2>\\g<3>"
        text, found = re.subn(pattern, new, text, flags=re.DOTALL)
        assert found == 1, f"docs/benchmarks.md needs one marker <!-- {name} -->, found {found}"
    return text


if __name__ == "__main__":
    page = DOCS / "benchmarks.md"
    page.write_text(fill(page.read_text()))
