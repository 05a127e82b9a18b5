"""`python -m benchmarks.document`: write the tables of README.md and docs/performance.md anew from the kept figures.

A table stands between `<!-- figures NAME FORM -->` and `<!-- end of figures -->`; NAME is that of
benchmarks/results/NAME.json, FORM one of `FORMS`. Tests hold the documents against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.bars import BARS, verdict
from benchmarks.efficiency.rows import load as load_efficiency
from benchmarks.figures import load, milliseconds, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
DRAWING = ROOT / "docs" / "efficiency.svg"
MARKED = re.compile(r"(<!-- figures (\S+) (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def full(path: Path) -> str:
    """All figures and the machine, as `make bench` prints them."""
    description, figures = load(path)
    machine = "\n".join(f"{name}: {value}" for name, value in description.items())
    return f"```\n{table(figures, verdict)}\n\n{machine}\n```\n"


def barred(path: Path) -> str:
    """Those that have a bar, as a table for a reader in a hurry."""
    description, figures = load(path)
    rows = ["| work | ours | rival | | ratio | bar |", "|---|---|---|---|---|---|"]
    for f in figures:
        if bar := BARS.get((f.work, f.peer_name)):
            fraction = f" ({f.floor_fraction:.2f} of the floor)" if bar.of_floor and f.floor_fraction else ""
            met = "" if verdict(f).endswith("yes") else ", not met"
            cells = (f.work, milliseconds(f.ours), milliseconds(f.peer), f.peer_name)
            rows.append(f"| {' | '.join(cells)} | {f.ratio:.1f}{fraction} | {bar.ratio:g}{met} |")
    return "\n".join([*rows, "", f"({description['cpu']}, {description['date']}.)", ""])


def efficiency(path: Path) -> str:
    """Coupled Mamba and cross-attention over the length of a clip."""
    description, kept = load_efficiency(path)
    return f"{kept.table()}\n({description['cpu']}, {description['date']}.)\n"


FORMS: Mapping[str, Callable[[Path], str]] = {"full": full, "barred": barred, "efficiency": efficiency}


def rewritten(text: str) -> str:
    """The document with its tables as the kept figures have them."""

    def replace(match: re.Match[str]) -> str:
        begin, name, form, end = match.groups()
        return begin + FORMS[form](RESULTS / f"{name}.json") + end

    return MARKED.sub(replace, text)


def main() -> None:
    """Rewrite both documents."""
    for path in DOCUMENTS:
        path.write_text(rewritten(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
