"""Media that a message names by URL: a model server fetches it, from inside the network that it stands in.

So `data:` URLs only, unless the settings say otherwise. `public` looks at what the name resolves to here and now; the model
server resolves it again, so against a name server of the attacker's own only a network policy helps.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning_core.gateway.http import HttpError

_RESOLVE_S = 5.0


def media_urls(messages: Any) -> Iterator[str]:
    """Yield every URL that a message's parts name (`image_url`, `video_url`, …), in any of the shapes vLLM takes."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            for key, value in part.items() if isinstance(part, dict) else ():
                if isinstance(key, str) and key.endswith("_url"):
                    url = value.get("url") if isinstance(value, dict) else value
                    if url is not None:
                        yield str(url)


async def check_media(messages: Any, allowed: Literal["data", "public", "any"]) -> None:
    """Raise HttpError 400 for a URL that must not be fetched."""
    for url in media_urls(messages):
        scheme = url[:8].partition(":")[0].strip().lower()
        if scheme == "data" and url.startswith("data:"):
            continue
        if scheme not in ("http", "https"):
            raise _refused(f"{scheme!r} URLs are not fetched; send a data: URL")
        if allowed == "data":
            raise _refused("media have to come as data: URLs; gateway.media_urls allows others")
        if allowed == "public" and (problem := await _not_public(url)):
            raise _refused(problem)


async def _not_public(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "this is no URL"
    if not host or any(character.isspace() or character == "\\" for character in url):
        return "this is no URL"  # what one parser takes for the host another may not
    try:
        loop = asyncio.get_running_loop()
        found = await asyncio.wait_for(loop.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM), _RESOLVE_S)
    except (OSError, TimeoutError, UnicodeError):
        return f"{host} does not resolve"
    if any(not _is_public(str(address[4][0])) for address in found):
        return f"{host} is not a public address"
    return None


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is not None:
        ip = inner
    # Reserved: among others IPv6 that a network translates to any IPv4 (64:ff9b::/96, ::/96).
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _refused(message: str) -> HttpError:
    return HttpError(400, message, code="invalid_image_url", param="messages")
