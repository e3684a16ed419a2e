"""The frameworks of examples/frameworks: each agent as it is, with the instrumentations people use and with none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_core.config import Settings
from lightning_core.settings_file import load_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "frameworks"
PLANNER = "You plan. Look up what is asked for."
QUESTION = "How many apples does each of two people get?"
TASKS = {
    "sequential": {"question": QUESTION, "answer": 3},
    "parallel": {"question": QUESTION, "answer": 3, "parallel": True},
}


@dataclass(frozen=True)
class Case:
    """One way to run the agent of a folder. `reaches`: the API its calls come by."""

    name: str
    folder: str
    framework: str
    instrumentation: str
    command: str  # a script of the folder, and its arguments
    reaches: str = "chat"

    @property
    def named(self) -> bool:
        """Whether anything tells agents apart."""
        return self.command.startswith("traced") and self.folder != "openai_client"

    def settings(self, home: Path) -> Settings:
        """Those of the example, with this script."""
        folder = EXAMPLES / self.folder
        changes = {
            "home": str(home),
            "run": self.name.replace(" ", "-"),
            "agent.command": f"python {folder}/{self.command}",
            "agent.python": str(folder / "requirements.txt"),
            "agent.environments": str(ROOT / "var" / "environments"),
            "reward.grader": f"{EXAMPLES}/reward.py:grade",
        }
        if not self.named:
            changes["policies.0.agent_match"] = ""
        return load_settings(folder / "settings.yaml", changes)


def _cases() -> list[Case]:
    own, none, oi = "its own", "none", "OpenInference"
    twice = "OpenInference, also of OpenAI's client"
    found = [
        Case("langgraph", "langgraph", "LangGraph", twice, "traced.py"),
        Case("openai_agents_openinference", "openai_agents", "OpenAI Agents SDK", twice, "traced.py chat"),
        Case(
            "openai_agents_genai", "openai_agents", "OpenAI Agents SDK", "OpenTelemetry GenAI", "traced_genai.py chat"
        ),
        Case("openai_agents_responses", "openai_agents", "OpenAI Agents SDK", twice, "traced.py", "responses"),
        Case("autogen", "autogen", "AutoGen", own, "traced.py"),
        Case("autogen_openinference", "autogen", "AutoGen", f"{own}; {twice}", "traced_openinference.py"),
        Case("crewai", "crewai", "CrewAI", oi, "traced.py"),
        Case("agent_framework", "agent_framework", "Microsoft Agent Framework", own, "traced.py"),
        Case("pydantic_ai", "pydantic_ai", "pydantic-ai", own, "traced.py"),
        Case("smolagents", "smolagents", "smolagents", oi, "traced.py"),
        Case("openai_client", "openai_client", "openai", "OpenTelemetry GenAI", "traced.py"),
    ]
    bare = {case.folder: case for case in found}
    found += [Case(f"{folder} bare", folder, case.framework, none, "agent.py") for folder, case in bare.items()]
    responses = "openai_agents bare"
    found = [
        Case(c.name, c.folder, c.framework, none, "agent.py", "responses") if c.name == responses else c for c in found
    ]
    return sorted(found, key=lambda case: (case.framework.lower(), case.instrumentation == none))


CASES = {case.name: case for case in _cases()}
