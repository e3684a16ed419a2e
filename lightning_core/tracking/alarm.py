"""The collapse alarm: signals of an epoch against the settings' limits.

It looks at what was recorded, so a run that was stopped stays stopped when it is started again, until the limits change.
"""

from __future__ import annotations

from lightning_core.config import Settings
from lightning_core.lake.lake import Lake
from lightning_core.tracking.signals import Signal, epoch_signals


class Collapse(RuntimeError):
    """A run that the alarm stopped. The message says which limit was passed, and which version is kept."""


def alarms(settings: Settings, epochs: int) -> list[str]:
    """Which limits the run has passed after `epochs` epochs: by the last one's training, and by the evaluation after it."""
    limits = settings.alarm
    if not limits.on:
        return []
    lake = Lake(settings.home)
    found = []
    for signal in _signals(lake, settings.run, epochs - 1, "train"):
        where = f"epoch {epochs - 1}, {signal.policy}: {signal.name} {signal.value:.4g}"
        if signal.name == "entropy" and limits.entropy_below is not None and signal.value < limits.entropy_below:
            found.append(f"{where} is below alarm.entropy_below {limits.entropy_below:g}")
        if signal.name == "kl" and limits.kl_above is not None and signal.value > limits.kl_above:
            found.append(f"{where} is above alarm.kl_above {limits.kl_above:g}")
    if limits.reward_drop is not None:
        rewards = [_held_out(lake, settings.run, number) for number in range(epochs + 1)]
        now, best = rewards[-1], max((r for r in rewards if r is not None), default=None)
        if now is not None and best is not None and best - now > limits.reward_drop:
            found.append(
                f"after epoch {epochs - 1}: mean held-out reward {now:.4g} is {best - now:.4g} below the best, {best:.4g}; "
                f"alarm.reward_drop is {limits.reward_drop:g}"
            )
    return found


def _held_out(lake: Lake, run: str, epochs: int) -> float | None:
    found = [s.value for s in _signals(lake, run, epochs, "evaluate") if s.name == "held_out_reward"]
    return found[0] if found else None


def _signals(lake: Lake, run: str, epoch: int, mode: str) -> list[Signal]:
    manifest = lake.manifests.epoch(run, epoch, mode)
    return [] if manifest is None else epoch_signals(lake, manifest)
