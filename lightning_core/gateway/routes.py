"""Which policy a model name means, where it is served, and what it samples with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lightning_core.config import ANY_NAME, Name, SamplingSettings
from lightning_core.errors import LightningError
from lightning_core.files import write_atomic
from lightning_core.gateway.service_files import PRIVATE, services

log = logging.getLogger(__name__)


class RoutesError(LightningError, ValueError):
    """Routes that cannot be used; the message names the key and what would be allowed."""


def checked_address(upstream: str) -> str:
    """Return the address of a model server as calls take it; ValueError for what is none."""
    if upstream.startswith("unix:///"):
        return upstream.rstrip("/")
    if not upstream.startswith(("http://", "https://")):
        raise ValueError("write it as unix:///path/to.sock or http://host:port")
    try:
        parts = urlsplit(upstream)
        known = parts.hostname and parts.port != 0 and parts.netloc.encode("idna")  # each may raise
    except ValueError as error:
        raise ValueError(f"{upstream}: {error}") from None
    if not known:
        raise ValueError(f"{upstream}: no host, or no port that there is")
    return upstream.rstrip("/")


Address = Annotated[str, AfterValidator(checked_address)]
Version = Annotated[str, Field(pattern=r"^v\d{4,}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loaded(_Model):
    """Another version of a policy that stays loaded: an adapter beside the newer one, or a replica of its own."""

    model: str = Field(min_length=1)
    upstream: Address | None = Field(None, description="where it is another vLLM than the policy's")


class Route(_Model):
    """One policy and the vLLMs that serve it."""

    upstream: Address = Field(description="`unix:///path.sock`, or `http://127.0.0.1:port`")
    replicas: tuple[Address, ...] = Field((), description="further vLLMs that serve the same")
    model: str = Field(min_length=1, description="name vLLM serves it under; an adapter's has the version in it")
    version: Version
    loaded: dict[Version, Loaded] = Field(default_factory=dict, description="other versions that can be asked for")
    restart_wait_s: float = Field(
        0, ge=0, description="seconds that calls wait for a vLLM which a supervisor starts again"
    )
    sampling: SamplingSettings = Field(default_factory=lambda: SamplingSettings.model_validate({}))
    evaluate_max_tokens: int | None = Field(None, ge=1)
    api_key: str | None = None

    def addresses(self, version: str) -> tuple[str, ...]:
        """Return where this version is served; KeyError where it is not."""
        if version == self.version:
            return (self.upstream, *self.replicas)
        other = self.loaded[version].upstream
        return (self.upstream, *self.replicas) if other is None else (other,)

    def served_as(self, version: str) -> str:
        return self.model if version == self.version else self.loaded[version].model


class Frozen(_Model):
    """A model name that is answered and never trained, by weights that some vLLM of the policies has loaded."""

    upstream: Address
    model: str = Field(min_length=1)


class Routes(_Model):
    policies: dict[Name, Route] = Field(default_factory=dict)
    frozen: dict[Name, Frozen] = Field(default_factory=dict)
    aliases: dict[str, Name] = Field(
        default_factory=dict, description="further names → policies, of which some may not be routed yet"
    )

    def aliased(self, name: str) -> str | None:
        """Return the policy that answers under a name which is nobody's own; None where none does."""
        policy = self.aliases.get(name, self.aliases.get(ANY_NAME))
        return policy if policy in self.policies else None


def parse_routes(data: bytes) -> Routes:
    """Parse the JSON of routes. Raises RoutesError."""
    try:
        return Routes.model_validate_json(data)
    except ValidationError as error:
        problems = (
            f"`{'.'.join(map(str, p['loc']))}`: {p['msg'].removeprefix('Value error, ')}" for p in error.errors()
        )
        raise RoutesError("; ".join(problems)) from None


class RouteTable:
    """The routes in force, and every version a policy has had since the gateway started.

    The history is what lets a call that ran through one or more swaps name all the versions it may have seen.
    """

    def __init__(self, home: Path) -> None:
        self._path = services(home) / "routes.json"
        self._history: dict[str, list[tuple[str, str]]] = {}  # policy → (version, the name it was served under)
        self._set(Routes())
        if self._path.exists():
            try:
                self._set(parse_routes(self._path.read_bytes()))
            except RoutesError as error:
                raise RoutesError(f"{self._path}: {error}; correct the file, or remove it") from None

    @property
    def current(self) -> Routes:
        return self._routes

    def replace(self, routes: Routes) -> None:
        """Store the routes, then put them in force; OSError where they cannot be stored."""
        write_atomic(self._path, routes.model_dump_json(indent=2).encode(), mode=PRIVATE)
        self._set(routes)
        log.info("routes: %s", ", ".join(f"{n} {r.version} at {r.upstream}" for n, r in routes.policies.items()))

    def _set(self, routes: Routes) -> None:
        self._routes = routes
        for name, route in routes.policies.items():
            seen = self._history.setdefault(name, [])
            if not seen or seen[-1][0] != route.version:
                seen.append((route.version, route.model))

    def mark(self, policy: str) -> int:
        """Return where the policy's history stands; give it to `versions_since` when the call ends."""
        return len(self._history[policy]) - 1

    def versions_since(self, policy: str, mark: int, model: str) -> list[str]:
        """Return the versions that `model` stood for meanwhile: several where weights were swapped under its name."""
        return list(dict.fromkeys(version for version, served in self._history[policy][mark:] if served == model))
