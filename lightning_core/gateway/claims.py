"""Who may begin a rollout: on a cluster a shard may be run again by its engine, or go on after its flow was killed.

Kept in memory: after a restart of the gateway nothing is granted until a flow begins a collection again, so that what
may have been begun before is looked up in the lake first.
"""

from __future__ import annotations

from collections import OrderedDict

_COLLECTIONS_KEPT = 64


class Claims:
    """The newest collection of each name, and the rollouts of it that were begun."""

    def __init__(self) -> None:
        self._begun: OrderedDict[str, tuple[str, set[str]]] = OrderedDict()

    def begin(self, name: str, collection: str) -> None:
        """From now on `collection` is the one of that name: nothing is granted to those before it."""
        self._begun.pop(name, None)
        self._begun[name] = (collection, set())
        if len(self._begun) > _COLLECTIONS_KEPT:
            self._begun.popitem(last=False)

    def grant(self, name: str, collection: str, rollout_id: str) -> bool:
        """Whether the rollout may be begun: once in a collection, and only in the newest of that name."""
        newest, begun = self._begun.get(name, ("", set()))
        if newest != collection or rollout_id in begun:
            return False
        begun.add(rollout_id)
        return True
