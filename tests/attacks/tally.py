"""Counts of attacks: tried, held, fell. `python tests/attacks/tally.py` prints the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

TALLIES = "HF_DISTILL_TALLIES"
"""The environment variable that names the file to which each area appends its line."""


class Tally:
    """All attacks of one area; the test fails at the end, with each attack that was not held.

    Args:
        area: The row of the table.
    """

    def __init__(self, area: str) -> None:
        self.area = area
        self.tried = 0
        self.fell: list[str] = []

    @contextmanager
    def attack(self, what: str) -> Iterator[None]:
        """One attack: whatever its body raises is a fall (let `pytest.raises` expect refusals)."""
        self.tried += 1
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self.fell.append(f"{what}: {type(error).__name__}: {error}"[:500])
        except BaseException as error:  # pytest's own outcomes: a refusal that did not come
            self.fell.append(f"{what}: {error}"[:500])

    def __enter__(self) -> Tally:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        if path := os.environ.get(TALLIES):
            row = {"area": self.area, "tried": self.tried, "fell": len(self.fell)}
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        assert self.tried, f"{self.area}: nothing was tried"
        listed = "\n".join(self.fell)
        assert not self.fell, f"{self.area}: {len(self.fell)} of {self.tried} fell:\n{listed}"


def _table(rows: list[dict[str, int | str]]) -> str:
    """The rows of one or more runs as Markdown, areas in alphabetical order."""
    sums: dict[str, tuple[int, int]] = {}
    for row in rows:
        tried, fell = sums.get(str(row["area"]), (0, 0))
        sums[str(row["area"])] = (tried + int(row["tried"]), fell + int(row["fell"]))
    lines = ["| area | tried | held | fell |", "| :-- | --: | --: | --: |"]
    for area, (tried, fell) in sorted(sums.items()):
        lines.append(f"| {area} | {tried:,} | {tried - fell:,} | {fell:,} |")
    return "\n".join(lines)


def main() -> int:
    """Run the attacks, the long form with ``--slow``, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        tallies = Path(folder, "tallies.jsonl")
        marker = "slow" if "--slow" in sys.argv[1:] else "not slow and not gpu"
        code = subprocess.call(
            [sys.executable, "-m", "pytest", "-q", "-m", marker, str(Path(__file__).parent)],
            env={**os.environ, TALLIES: str(tallies)},
        )
        lines = tallies.read_text(encoding="utf-8").splitlines() if tallies.exists() else []
        print(_table([json.loads(line) for line in lines]))
    return code


if __name__ == "__main__":
    sys.exit(main())
