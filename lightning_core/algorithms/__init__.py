"""The algorithms that train a policy: what one is, those that are built in, and which class `policies[].algorithm` names.

    algorithm.py   what one is: `Algorithm`, whose defaults are `grpo`
    ppo.py         advantages by a critic                 sft.py         the likelihood of examples

No module here imports torch before it trains, so settings stay quick to read.
"""

from __future__ import annotations

from lightning_core.algorithms.algorithm import Algorithm, Options, Tokens
from lightning_core.algorithms.ppo import Ppo
from lightning_core.algorithms.sft import Sft

BUILT_IN: dict[str, type[Algorithm]] = {"grpo": Algorithm, "ppo": Ppo, "sft": Sft}


def is_own(name: str) -> bool:
    """Return whether the name is that of a class of the user's: `package.module:Name` or `file.py:Name`."""
    return ":" in name


def load(name: str) -> type[Algorithm]:
    """Return the class. Raises ValueError where one of the user's cannot be imported or is no Algorithm."""
    if not is_own(name):
        return BUILT_IN[name]
    from lightning_core.loading import load_callable

    found = load_callable(name, "policies.algorithm")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ValueError(f"policies.algorithm: {name!r} is no class made from lightning_core.algorithms.Algorithm")
    return found


__all__ = ["BUILT_IN", "Algorithm", "Options", "Tokens", "is_own", "load"]
