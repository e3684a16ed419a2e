"""Whose call is it: the share of calls that are given to another agent than the one that made them, and of those left out.

    evidence_clean, _shared, _partly, _absent, _changing   random runs of several agents as the recorded frameworks emit them,
                      nothing lost; each agent has a system message of its own, all have one, half of them, none has any, or
                      it changes
    evidence_lost_20  a fifth of the agents' spans lost; _known: in a second epoch, after one like it; _lost_batches: a tenth of the exporters' batches; _sampled_out: a
                      fifth of the traces; _uninstrumented: in a third of the runs one agent emits nothing
    evidence_clock_behind   the gateway's clock 200 ms behind the agents'; _clock_50, _clock_1000: ahead by so many ms;
                      _helper_clock: other processes' clocks 200 ms off either way
    evidence_late     a fifth of the requests come last, and a second time
    evidence_dumps_lost, _alike, _redacted   the recorded frameworks without one agent's span: as sent, with one system
                      message for all, without texts

`value` is the share of all calls that are wrong, `left_out` of those nobody is given, though somebody emits their agent.
`placed` has right and wrong by method.

    .venv/bin/python -m bench.evidence [evidence_clean …] [--calls 10000] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.report import figure, say
from tests.agent_runs import Faults, Prompts
from tests.agent_truth import Texts, attempts, dumps_without_an_agent, judged, prompts_known

RUNS: dict[str, tuple[Prompts, Faults]] = {
    "evidence_clean": ("own", Faults()),
    "evidence_shared": ("shared", Faults()),
    "evidence_partly": ("partly", Faults()),
    "evidence_absent": ("absent", Faults()),
    "evidence_changing": ("changing", Faults()),
    "evidence_lost_20": ("own", Faults(lost=0.2)),
    "evidence_lost_20_known": ("own", Faults(lost=0.2)),
    "evidence_lost_batches": ("own", Faults(lost_batches=0.1)),
    "evidence_sampled_out": ("own", Faults(sampled_out=0.2)),
    "evidence_uninstrumented": ("own", Faults(uninstrumented=0.33)),
    "evidence_clock_behind": ("own", Faults(gateway_ms=-200)),
    "evidence_clock_50": ("own", Faults(gateway_ms=50)),
    "evidence_clock_1000": ("own", Faults(gateway_ms=1000)),
    "evidence_helper_clock": ("own", Faults(helper_ms=200)),
    "evidence_late": ("own", Faults(late=0.2)),
}
DUMPS: dict[str, Texts] = {
    "evidence_dumps_lost": "as sent",
    "evidence_dumps_alike": "alike",
    "evidence_dumps_redacted": "redacted",
}


def measure(name: str, calls: int) -> None:
    say(name)
    if name in RUNS:
        prompts, faults = RUNS[name]
        rows, known = attempts(calls, prompts, faults)
    else:
        rows, known = dumps_without_an_agent(DUMPS[name])
    with tempfile.TemporaryDirectory() as scratch:
        earlier: dict[str, str] = {}
        if name.endswith("_known"):
            earlier = prompts_known(Path(scratch, "before"), attempts(calls, *RUNS[name], seed=1)[0])
        found = judged(Path(scratch), rows, known, prompts=earlier)
    placed = {method: found.by_method[method] for method in sorted(found.by_method)}
    figure(
        name, found.wrong_share, "share wrong", None, found.calls, True, left_out=found.left_out_share, placed=placed
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join((*RUNS, *DUMPS)))
    parser.add_argument("--calls", type=int, default=10_000, help="at least, of a row of random runs")
    parser.add_argument("--quick", action="store_true", help="small numbers that mean nothing")
    options = parser.parse_args()
    unknown = set(options.figures) - {*RUNS, *DUMPS}
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join((*RUNS, *DUMPS))}")
    for name in options.figures or (*RUNS, *DUMPS):
        measure(name, 300 if options.quick else options.calls)


if __name__ == "__main__":
    main()
