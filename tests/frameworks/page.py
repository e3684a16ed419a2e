"""docs/frameworks.md: what is written about frameworks, and the table of what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from docs.marks import between
from tests.frameworks.cases import CASES, EXAMPLES, ROOT, Case
from tests.frameworks.measure import Measured

PAGE = ROOT / "docs" / "frameworks.md"
_BEGIN, _END = "<!-- measured by tests/integration/test_frameworks.py -->", "<!-- end of what was measured -->"
_HEAD = (
    "framework",
    "instrumentation",
    "API",
    "calls with token ids",
    "its own records of calls, merged",
    "calls given to the agent that made them",
    "trained with `agent_match: executor`",
    "tool spans (failed)",
    "ambiguous calls",
)


def row(case: Case, measured: Mapping[str, Measured]) -> str:
    """A line of the table; figures are those of sequential use / of parallel use."""

    def both(figure: str) -> str:
        return " / ".join(figure.format(m=one) for one in measured.values())

    def trained(one: Measured) -> str:
        return f"{one.trained.get('executor', 0)} of {one.made_by.get('executor', 0)}"

    def tools(one: Measured) -> str:
        failed = sum(one.failed_tools.values())
        return f"{sum(one.tools.values()) + failed} ({failed})"

    cells = [case.framework, case.instrumentation, case.reaches]
    cells += [both("{m.with_ids} of {m.calls}"), both("{m.merged} of {m.instrumented}")]
    if case.named:
        cells += [both("{m.right}"), " / ".join(map(trained, measured.values()))]
        cells += [" / ".join(map(tools, measured.values()))]
    else:
        cells += ["no names", "no names", "none"]
    cells.append(both("{m.ambiguous}"))
    return f"| {' | '.join(cells)} |"


def table(rows: Mapping[str, str]) -> str:
    lines = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|", *(rows[name] for name in CASES)]
    lines += ["", "| example | versions |", "|---|---|"]
    for folder in sorted({case.folder for case in CASES.values()}):
        pins = (EXAMPLES / folder / "requirements.txt").read_text().split()
        lines.append(f"| `examples/frameworks/{folder}` | {', '.join(pin.replace('==', ' ') for pin in pins)} |")
    return "\n".join(lines)


def write(rows: Mapping[str, str]) -> None:
    """Put the rows of all cases into the page."""
    PAGE.write_text(between(PAGE.read_text(), _BEGIN, _END, table(rows)))
