"""Write the block of table 2 into the pages that quote it, from benchmarks/results/table2.json.

python docs/generate_table2.py          writes it between the markers of README.md and docs/method.md
python docs/generate_table2.py --check  exit code 1 where a page quotes something else
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from saqm.table2_report import to_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "method.md")
BEGIN, END = "<!-- table2:begin -->\n", "\n<!-- table2:end -->"


def filled(page: Path) -> str:
    """A page with its block made anew; all else as it is."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    directions = json.loads((RESULTS / "table2.json").read_text(encoding="utf-8"))
    link = Path(os.path.relpath(RESULTS / "table2.md", page.parent)).as_posix()
    return f"{before}{BEGIN}{to_block(directions, link)}{END}{after}"


def main() -> None:
    """Write the pages, or check them."""
    for page in PAGES:
        made = filled(page)
        if "--check" in sys.argv:
            if page.read_text(encoding="utf-8") != made:
                sys.exit(f"{page.name} does not quote table2.json: python docs/generate_table2.py")
        else:
            page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
