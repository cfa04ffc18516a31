"""Put the tables that the code knows between their markers; called by scripts/docs from the top folder."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path

FILES = ("README.md", "forkrunner/README.md")
#: Marker → the function that returns the table; its module is imported only where the marker is met.
TABLES = {
    "settings": "forkrunner.config:table",
    "signals": "forkrunner.orders:signal_table",
    "events": "forkrunner.events:table",
    "endings": "forkrunner.job:ending_table",
}
BLOCK = re.compile(r"(<!-- begin:(\w+) -->\n).*?(<!-- end:\2 -->)", re.DOTALL)


def generate(match: re.Match[str]) -> str:
    begin, name, end = match.groups()
    module, _, function = TABLES[name].partition(":")
    table: str = getattr(importlib.import_module(module), function)()
    return f"{begin}{table.strip()}\n{end}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/docs", description="Rewrite the generated tables.")
    parser.add_argument(
        "--check", action="store_true", help="only compare; exit 1 naming the files that differ"
    )
    check = parser.parse_args().check
    stale = []
    for path in map(Path, FILES):
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        markers = re.findall(r"<!-- (?:begin|end):(\w+) -->", old)
        blocks = [match[2] for match in BLOCK.finditer(old)]
        if markers != [name for block in blocks for name in (block, block)] or not TABLES.keys() >= set(
            blocks
        ):
            sys.exit(
                f"{path}: expected pairs of begin and end for {', '.join(TABLES)}, got {', '.join(markers)}"
            )
        new = BLOCK.sub(generate, old)
        if new != old:
            stale.append(str(path))
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: generated tables are out of date; run scripts/docs")


if __name__ == "__main__":
    main()
