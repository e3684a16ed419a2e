"""Values that `agent.pass_environment` hands on: what an attempt returns or dies with is stored, and must not hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_SHORTEST = 6  # a shorter value occurs in texts by chance


class Secrets:
    """Puts `[NAME]` where the value of variable NAME stood."""

    def __init__(self, names: Iterable[str], environment: Mapping[str, str]) -> None:
        found = [(environment[name], f"[{name}]") for name in names if len(environment.get(name, "")) >= _SHORTEST]
        self._found = sorted(found, key=lambda pair: -len(pair[0]))  # one may be part of another

    def hide(self, value: Any) -> Any:
        """Return `value` (anything JSON can hold) without the secrets in its texts."""
        if not self._found:
            return value
        if isinstance(value, str):
            for secret, name in self._found:
                value = value.replace(secret, name)
            return value
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return value
