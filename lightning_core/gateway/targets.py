"""What `model` in a request means: a policy, a version of it (`policy@v0003`), a frozen model, or one of an upstream;
else what is an alias of a policy, and last `*`, which is the alias of every other name.

A rollout stays on the version it began with where that is still served. Where it is not, the settings say whether its
calls go on with the new one or are refused.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_core.config import ANY_NAME, UpstreamSettings
from lightning_core.errors import LightningError
from lightning_core.gateway.access import Caller
from lightning_core.gateway.http import HttpError
from lightning_core.gateway.routes import Frozen, Route, RouteTable, checked_address

_VLLM = "/v1"
_REMEMBERED = 50_000  # attempts whose first version is known


class NoKey(LightningError, ValueError):
    """An upstream's key is not in the environment; the message names both."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes. `policy` and `version` are None for a model that is not trained."""

    asked: str
    label: str  # of metrics and logs: the policy, or the upstream
    model: str  # the name it is served under
    addresses: tuple[str, ...]
    api_key: str | None
    base: str = ""  # before each path: a vLLM has all under /v1, an upstream's address says what it has
    route: Route | None = None
    policy: str | None = None
    version: str | None = None
    mark: int = 0
    patience_s: float = 0.0  # how long a call waits for an upstream that is gone


class Targets:
    """Resolves model names. Keys of upstreams are read from the environment once, here, and stored nowhere."""

    def __init__(
        self,
        routes: RouteTable,
        upstreams: list[UpstreamSettings],
        version_change: Literal["follow", "refuse"],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Read the upstreams' keys. Raises NoKey, or ValueError for an upstream's address that is none."""
        self._routes = routes
        self._refuse = version_change == "refuse"
        self._external: dict[str, Target] = {}
        self._begun: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        for upstream in upstreams:
            key = None
            if upstream.api_key_env is not None and not (key := environment.get(upstream.api_key_env)):
                raise NoKey(f"upstream {upstream.name!r}: ${upstream.api_key_env} is not set where the gateway starts")
            if key is not None and not (key.isascii() and key.isprintable()):
                raise NoKey(f"upstream {upstream.name!r}: ${upstream.api_key_env} has a line break or the like in it")
            try:
                address = checked_address(upstream.base_url)
            except ValueError as error:
                raise ValueError(f"upstream {upstream.name!r}: base_url {error}") from None
            for model in upstream.models:
                self._external[model] = Target(model, upstream.name, model, (address,), key)

    def names(self) -> list[str]:
        """Return every name that can be asked for."""
        found = []
        for name, route in self._routes.current.policies.items():
            found += [name, *(f"{name}@{version}" for version in sorted({route.version, *route.loaded}))]
        routes = self._routes.current
        aliases = [alias for alias in routes.aliases if alias != ANY_NAME and routes.aliased(alias)]
        return list(dict.fromkeys([*found, *routes.frozen, *self._external, *aliases]))

    def policy_of(self, name: str) -> str | None:
        """Return the policy that a call to `name` is for, served or not; None for other models and unknown names."""
        routes, policy = self._routes.current, name.partition("@")[0]
        if policy in routes.policies:
            return policy
        return None if name in routes.frozen or name in self._external else routes.aliased(name)

    def resolve(self, name: str, caller: Caller) -> Target:
        """Return where a call to `name` goes.

        Raises HttpError: 404 for a name or version that is not served, 409 for a rollout whose version went.
        """
        routes = self._routes.current
        policy, at, version = name.partition("@")
        route = routes.policies.get(policy)
        if route is None or (at and version not in (route.version, *route.loaded)):
            if (frozen := routes.frozen.get(name)) is not None:
                return self._frozen(name, frozen)
            if (external := self._external.get(name)) is not None:
                return external
            aliased = routes.aliased(name) if route is None else None  # a version that went is not another model's call
            if aliased is None:
                raise self._unknown(name)
            policy, at, route = aliased, "", routes.policies[aliased]
        if not at:
            version = self._version(policy, route, caller)
        return Target(
            asked=name,
            label=policy,
            model=route.served_as(version),
            addresses=route.addresses(version),
            api_key=route.api_key,
            base=_VLLM,
            route=route,
            policy=policy,
            version=version,
            patience_s=route.restart_wait_s,
            mark=self._routes.mark(policy),
        )

    def _unknown(self, name: str) -> HttpError:
        message = (
            f"The model `{name}` does not exist; `model` names a policy, a version of one, or a model of an upstream, "
            f"and these are served: {', '.join(self.names()) or 'none yet'}"
        )
        if self.policy_of(name) is None and name not in self._routes.current.aliases:
            line = f"aliases: [{json.dumps(name, ensure_ascii=False)}]"
            message += f". Where an agent has the name written into it, give the policy that is to answer `{line}`"
        return HttpError(404, message, code="model_not_found", param="model")

    def _frozen(self, name: str, frozen: Frozen) -> Target:
        """Return the target of a frozen model, which has no settings of its own.

        What holds for calls to the policies of its vLLM holds for it.
        """
        beside = [r for r in self._routes.current.policies.values() if frozen.upstream in (r.upstream, *r.replicas)]
        return Target(
            asked=name,
            label="frozen",
            model=frozen.model,
            addresses=(frozen.upstream,),
            api_key=next((route.api_key for route in beside), None),
            base=_VLLM,
            patience_s=max((route.restart_wait_s for route in beside), default=0.0),
        )

    def versions(self, target: Target) -> str | None:
        """Return `v0003`, or `v0003,v0004` where the weights behind the name changed since the target was resolved."""
        if target.policy is None or target.version is None or target.route is None:
            return None
        if target.addresses[0] != target.route.upstream:
            # A replica of its own, which may serve it under the name that the others give the new one.
            return target.version
        seen = self._routes.versions_since(target.policy, target.mark, target.model)
        return ",".join(dict.fromkeys([target.version, *seen]))

    def _version(self, policy: str, route: Route, caller: Caller) -> str:
        if caller.rollout_id is None or caller.attempt_id is None:
            return route.version
        key = (caller.rollout_id, caller.attempt_id, policy)
        begun = self._begun.setdefault(key, route.version)
        self._begun.move_to_end(key)
        if len(self._begun) > _REMEMBERED:
            self._begun.popitem(last=False)
        if begun == route.version or begun in route.loaded:
            return begun
        if self._refuse:
            raise HttpError(
                409,
                f"this rollout began with {policy}@{begun}, which is no longer served (now {route.version}); "
                "gateway.version_change: follow would let it go on",
                code="policy_version_changed",
                param="model",
                headers={"x-should-retry": "false"},
            )
        self._begun[key] = route.version
        return route.version
