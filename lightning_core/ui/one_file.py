"""A run in one file, to be sent to somebody: pages of the page itself, one below the other, their links within the file."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from lightning_core.errors import Missing
from lightning_core.files import write_atomic
from lightning_core.ui.app import app, place
from lightning_core.ui.guard import Allowed

_HERE = Path(__file__).parent
_MOST_BYTES = 5_000_000
_MAIN = re.compile(r"<main[^>]*>(.*)</main>", re.DOTALL)
_LINK = re.compile(r'(href=")([^"#][^"]*)(")')
# What needs a server or a script.
_DEAD = re.compile(r'<form.*?</form>|<button.*?</button>|<p class="note">tokens coloured by.*?</p>', re.DOTALL)


def report(home: Path, run: str) -> str:
    """Return the HTML of a report of a run.

    It has the run's curves, tasks and comparison, and the rollouts that changed most or were worst, as many as fit into
    5 MB. Raises Missing for a run that is not there.
    """
    pages = asyncio.run(_pages(home, run))
    style = (_HERE / "static" / "page.css").read_text()
    names = {address: f"page-{number}" for number, address in enumerate(pages)}

    def within(found: re.Match[str]) -> str:
        if found[2].startswith("http"):  # MLflow's: what the page links elsewhere is never of a span
            return found[0]
        address, _, part = html.unescape(found[2]).partition("#")
        name = names.get(address)
        return f'href="#{part or name}"' if name else 'class="gone"'

    body = "\n".join(
        f'<article id="{names[a]}">{_LINK.sub(within, _DEAD.sub("", page))}</article><hr>' for a, page in pages.items()
    )
    title = html.escape(run)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<meta http-equiv=\"content-security-policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def write(home: Path, run: str, into: Path) -> int:
    """Write the report of a run; returns its size in bytes."""
    content = report(home, run).encode()
    write_atomic(into, content)
    return len(content)


async def _pages(home: Path, run: str) -> dict[str, str]:
    """Return the inner HTML of the pages by their addresses, in the order in which they are read."""
    pages: dict[str, str] = {}
    size = 0
    transport = httpx.ASGITransport(app(home, Allowed(frozenset({"page"}))))
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:

        async def add(address: str) -> str | None:
            nonlocal size
            answer = await client.get(address)
            found = _MAIN.search(answer.text)
            if answer.status_code != 200 or found is None:
                return None
            larger = size + len(found[1].encode())
            if larger > _MOST_BYTES * 0.9:
                return None
            size = larger
            pages[address] = found[1]
            return found[1]

        first = await add(place("", run))
        if first is None:
            raise Missing(f"run {run!r} has no rollout yet, or is no run of {home}")
        await add(place("tasks", run))
        await add(place("tasks", run, mode="evaluate"))
        compared = [html.unescape(link[1]) for link in _LINK.findall(first) if "/compare?" in link[1]]
        listed = [await add(address) for address in (*compared, place("rollouts", run, sort="worst"))]
        for page in listed:
            for link in _LINK.findall(page or "")[:60]:
                address = html.unescape(link[1])
                if "/rollout/" in urlsplit(address).path and address not in pages and await add(address) is None:
                    break
    return pages
