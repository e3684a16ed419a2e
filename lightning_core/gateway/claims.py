"""Who may begin a rollout: on a cluster a shard may be run again by its engine, or go on after its flow was killed.

Kept in memory: after a restart of the gateway nothing is granted until a flow begins a round again, so that what
may have been begun before is looked up in the lake first.
"""

from __future__ import annotations

from collections import OrderedDict

_ROUNDS_KEPT = 64


class Claims:
    """The newest round of each name, and the rollouts of it that were begun."""

    def __init__(self) -> None:
        self._begun: OrderedDict[str, tuple[str, set[str]]] = OrderedDict()

    def begin(self, name: str, round_id: str) -> None:
        """From now on `round_id` is the one of that name: nothing is granted to those before it."""
        self._begun.pop(name, None)
        self._begun[name] = (round_id, set())
        if len(self._begun) > _ROUNDS_KEPT:
            self._begun.popitem(last=False)

    def grant(self, name: str, round_id: str, rollout_id: str) -> bool:
        """Whether the rollout may be begun: once in a round, and only in the newest of that name."""
        newest, begun = self._begun.get(name, ("", set()))
        if newest != round_id or rollout_id in begun:
            return False
        begun.add(rollout_id)
        return True
