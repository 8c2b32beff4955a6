"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A Markdown table; these columns are aligned to the left, the others to the right."""
    line = [":--" if place in left else "--:" for place, _ in enumerate(header)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, line, *rows))
