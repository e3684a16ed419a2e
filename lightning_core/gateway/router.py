"""Which endpoint a path and method mean.

A path is taken apart before its parts are unquoted, so that a part may hold an escaped slash, as ids of rollouts do that are made
of a file's name. Every part has to be the same letter by letter: `//`, `..` and another case are other paths, which nobody has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from lightning_core.gateway.http import HttpError, Receive, Scope, Send

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class _Node:
    """What may come after some first parts of a path, and what answers where nothing does."""

    parts: dict[str, _Node] = field(default_factory=dict)
    name: str = ""  # of the part here, where any is taken
    any_part: _Node | None = None
    takes_rest: bool = False
    methods: dict[str, Endpoint] = field(default_factory=dict)


class Router:
    def __init__(self) -> None:
        self._root = _Node()

    def add(self, path: str, method: str, endpoint: Endpoint) -> None:
        """Add an endpoint. `{name}` in the path takes any one part, `{name:path}` at its end all there are.

        `scope["path_params"]` has them.
        """
        node = self._root
        for part in path.removeprefix("/").split("/"):
            if part.startswith("{"):
                name, _, kind = part.strip("{}").partition(":")
                node.any_part = node.any_part or _Node(name=name, takes_rest=kind == "path")
                node = node.any_part
            else:
                node = node.parts.setdefault(part, _Node())
        node.methods[method] = endpoint
        if method == "GET":
            node.methods["HEAD"] = endpoint

    def find(self, scope: Scope) -> Endpoint:
        """Return the endpoint of a request, and set the scope's `path_params`; HttpError 404 or 405."""
        raw, method = scope["raw_path"].decode("latin-1"), scope["method"]
        parts = raw.removeprefix("/").split("/")
        if "%" in raw:
            parts = [unquote(part) for part in parts]
        params: dict[str, str] = {}
        node = self._root
        for number, part in enumerate(parts):
            following = node.parts.get(part) or (node.any_part if part else None)
            if following is None:
                raise _unknown(scope)
            node = following
            if node.takes_rest:
                params[node.name] = "/".join(parts[number:])
                break
            if node.name:
                params[node.name] = part
        if not node.methods:
            raise _unknown(scope)
        if method not in node.methods:
            allowed = {"Allow": ", ".join(sorted(node.methods))}
            raise HttpError(405, f"{method} {scope['path']}: Method Not Allowed", headers=allowed)
        scope["path_params"] = params
        return node.methods[method]


def _unknown(scope: Scope) -> HttpError:
    return HttpError(404, f"Unknown request URL: {scope['method']} {scope['path']}", code="unknown_url")
