"""Pages of which a part is written by a program, between two comments."""

from __future__ import annotations


def between(page: str, begin: str, end: str, shown: str) -> str:
    """A page with what stands between two marks replaced. Raises ValueError where it has not both."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no {begin} … {end}")
    return f"{before}{begin}\n{shown}\n{end}{after}"
