"""The versions of prompts that a rollout is served take the place of those that its agent sends; the agent stays as it is.

Only system and developer messages are searched; requests of every API have been converted to such messages by then. If a message begins
with a seed, the version replaces the seed; if a prompt's regex matches, the version replaces the match. Longer texts are tried first. The
served version is one of these texts: a message that begins with it, with its fields filled in or not, stays as it is. White space at
the ends of a seed does not matter. A regex is not tried if the file has had one text only and that is served: the agent has it already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning_core.gateway.http import unavailable
from lightning_core.prompts.served import PromptSet, read_set
from lightning_core.prompts.store import PromptError

_ROLES = ("system", "developer")
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_REMEMBERED = 256  # sets; an epoch has one, or one a candidate


@dataclass(frozen=True)
class Served:
    """A request with the prompts that it is served. For its span: `replaced`, for each message that changed, which and how; `found`: the
    prompts that it has now, None where its rollout is served none."""

    request: dict[str, Any]
    replaced: list[dict[str, Any]]
    found: list[str] | None = None


class Prompts:
    """Replaces prompts in requests, by the sets of a home."""

    def __init__(self, home: Path) -> None:
        self._find = lru_cache(_REMEMBERED)(lambda digest: _Replacer(read_set(home, digest)))

    def serve(self, request: dict[str, Any], digest: str | None) -> Served:
        """Return the request as it goes on; the very same where nothing is replaced.

        Raises HttpError 503 where the set cannot be read.
        """
        messages = request.get("messages")
        if digest is None or not isinstance(messages, list):
            return Served(request, [])
        try:
            replacer = self._find(digest)
        except PromptError as error:
            raise unavailable(str(error)) from None
        served, replaced, found = list(messages), [], set[str]()
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in _ROLES:
                continue
            content, by = replacer.content(message.get("content"))
            found |= replacer.found(message.get("content")) | by.keys()
            if by:
                served[number] = message | {"content": content}
                replaced.append({"message": number, "prompts": by, "content": content})
        return Served(request | {"messages": served} if replaced else request, replaced, sorted(found))


class _Replacer:
    def __init__(self, prompts: PromptSet) -> None:
        self._texts = {name: prompt.text for name, prompt in prompts.prompts.items()}
        self._versions = prompts.versions
        known = [(text.strip(), name) for name, p in prompts.prompts.items() for text in (p.text, *p.seeds)]
        self._known = sorted(known, key=lambda one: -len(one[0]))
        self._filled = {name: re.compile(_with_fields(text.strip())) for name, text in self._texts.items()}
        self._matches = {name: re.compile(p.match) for name, p in prompts.prompts.items() if p.match is not None}
        replaced = {name: p.match for name, p in prompts.prompts.items() if p.seeds != (p.text,)}
        self._patterns = [(re.compile(match), name) for name, match in replaced.items() if match is not None]

    def content(self, content: Any) -> tuple[Any, dict[str, str]]:
        """Return what is served in place of a message's content, and prompt → version of those that were put in."""
        if isinstance(content, str):
            return self._text(content)
        if not isinstance(content, list):
            return content, {}
        parts: list[Any] = []
        by: dict[str, str] = {}
        for part in content:
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            served, names = self._text(text) if isinstance(text, str) else (None, {})
            parts.append(part | {"text": served} if names else part)
            by |= names
        return parts, by

    def found(self, content: Any) -> set[str]:
        """Return the prompts whose served version a message's content begins with, or whose regex matches in it."""
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        given = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text for text in given if isinstance(text, str)]
        served = {name for name, current in self._filled.items() if any(current.match(text.lstrip()) for text in texts)}
        return served | {name for name, match in self._matches.items() if any(map(match.search, texts))}

    def _text(self, text: str) -> tuple[str, dict[str, str]]:
        begins = len(text) - len(text.lstrip())
        for known, name in self._known:
            if text.startswith(known, begins):
                current = self._texts[name].strip()
                if known == current:
                    return text, {}
                return text[:begins] + current + text[begins + len(known) :], {name: self._versions[name]}
        if any(current.match(text, begins) for current in self._filled.values()):
            return text, {}
        for pattern, name in self._patterns:
            if (found := pattern.search(text)) is not None:
                current = _filled(self._texts[name].strip(), found.groupdict())
                if found[0] == current:
                    return text, {}
                return text[: found.start()] + current + text[found.end() :], {name: self._versions[name]}
        return text, {}


def _with_fields(text: str) -> str:
    """Return a regex of the text with anything in its fields."""
    return "(?s:.*?)".join(map(re.escape, _FIELD.split(text)[::2]))


def _filled(text: str, fields: dict[str, str | None]) -> str:
    known = {name: value for name, value in fields.items() if value is not None}
    return _FIELD.sub(lambda field: known.get(field[1], field[0]), text)
