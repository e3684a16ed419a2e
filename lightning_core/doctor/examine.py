"""One examination: a gateway of its own in a folder of its own, the agent's rollouts, the findings."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.agents.attempt import AttemptResult
from lightning_core.config import ANY_NAME, Settings
from lightning_core.doctor.canned import ANSWER, canned_model
from lightning_core.doctor.findings import Finding, findings
from lightning_core.doctor.trial import try_agent
from lightning_core.gateway.handle import GatewayHandle

QUESTION = {"id": "doctor", "question": "What is 2 + 3?", "answer": "5"}


@dataclass(frozen=True)
class Examination:
    model: str  # what answered, for people
    results: Mapping[str, AttemptResult]
    printed: str  # the end of what the agent wrote to stderr and stdout
    findings: list[Finding]

    @property
    def trains(self) -> bool:
        """Return whether training would have anything to learn from."""
        return all(finding.level != "fatal" for finding in self.findings)


def examine(settings: Settings, task: Mapping[str, Any]) -> Examination:
    """Run the agent of the settings on one task and report what is missing. Nothing is written into `settings.home`.

    What answers is the vLLM that serves there (`lightning-flows serve`), or else a canned reply. Raises SettingsError for
    an agent that cannot be started.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lightning-doctor-")))
        serving = GatewayHandle.find(settings.home)
        routes = serving.routes() if serving is not None else {"policies": {}}
        served = [policy.name for policy in settings.policies if policy.name in routes["policies"]]
        if len(served) == len(settings.policies):
            model = f"the model that serves in {settings.home}"
        else:
            upstream = stack.enter_context(canned_model())
            policies = {p.name: {"upstream": upstream, "model": p.name, "version": "v0000"} for p in settings.policies}
            frozen = {name: {"upstream": upstream, "model": name} for name in settings.frozen}
            routes = {"policies": policies, "frozen": frozen}
            model = f"a canned reply ({ANSWER!r}), which calls no tools; where `lightning-flows serve` runs, its model answers"
        # A name that nobody has is answered all the same, so that one run finds everything; `unknown_model` says so.
        routes["aliases"] = {ANY_NAME: settings.policies[0].name} | settings.aliases
        gateway = GatewayHandle.start(
            home, settings.gateway.model_copy(update={"port": 0, "grpc_port": 0}), home / "log"
        )
        stack.callback(gateway.stop)
        gateway.set_routes(routes)
        trial = try_agent(gateway, settings.model_copy(update={"run": "doctor"}), {"doctor": task})
        return Examination(model, trial.results, trial.printed, findings(trial))
