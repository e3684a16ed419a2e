"""The collapse alarm: signals of an epoch against the settings' limits.

It looks at what was recorded, so a run that was stopped stays stopped when it is started again, until the limits change.
"""

from __future__ import annotations

from lightning_core.config import AlarmSettings
from lightning_core.errors import LightningError
from lightning_core.events import when
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake


class Collapse(LightningError):
    """A run that the alarm stopped. The message says which limit was passed, and which version is kept."""


def alarms(lake: Lake, run: str, limits: AlarmSettings, epochs: int) -> list[str]:
    """Return the limits that the run has passed after `epochs` epochs, in words.

    They are about the last epoch's training, and about the evaluation after it.
    """
    if not limits.on:
        return []
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        trained = con.execute(
            "SELECT policy, signal, value FROM signals "
            "WHERE run = ? AND mode = 'train' AND epoch = ? AND signal IN ('entropy', 'kl') ORDER BY ALL",
            [run, epochs - 1],
        ).fetchall()
        evaluated = con.execute(
            "SELECT epoch, value FROM signals WHERE run = ? AND mode = 'evaluate' AND epoch <= ? AND signal = 'held_out_reward'",
            [run, epochs],
        ).fetchall()
    found = []
    for policy, signal, value in trained:
        where = f"epoch {epochs - 1}, {policy}: {signal} {value:.4g}"
        if signal == "entropy" and limits.entropy_below is not None and value < limits.entropy_below:
            found.append(f"{where} is below alarm.entropy_below {limits.entropy_below:g}")
        if signal == "kl" and limits.kl_above is not None and value > limits.kl_above:
            found.append(f"{where} is above alarm.kl_above {limits.kl_above:g}")
    rewards = dict(evaluated)
    if limits.reward_drop is not None and epochs in rewards:
        now, best = rewards[epochs], max(rewards.values())
        if best - now > limits.reward_drop:
            found.append(
                f"{when(epochs)}: mean held-out reward {now:.4g} is {best - now:.4g} below the best, {best:.4g}; "
                f"alarm.reward_drop is {limits.reward_drop:g}"
            )
    return found
