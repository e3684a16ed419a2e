"""Random runs of several agents, of which it is known who made each call, as the recorded frameworks would have emitted them.

A `Run` is what happened: agents with their times, calls, tools. It knows nothing of spans. `emit` writes it down the way a
framework does (tests/data/frameworks), the gateway's record of every call beside it. `Faults` says what was lost or shifted on
the way. The same seed gives the same run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.lake_maker import SECOND, Attempt

Prompts = Literal["own", "shared", "partly", "absent", "changing"]
# What is emitted: spans of LLM calls that name the response ("twins") or repeat its content, of HTTP clients, or none;
# tools with the ids of their calls; the nearest span that a nested agent declares.
STYLES = {
    "autogen": 32,  # agents in traces of their own, tools with ids, no LLM spans
    "crewai": 26,  # one trace, tools without ids, no LLM spans
    "clients": 12,  # an HTTP client of some agents is instrumented, and sends its traceparent
    "pydantic_ai": 6,  # LLM spans with response ids
    "openai_agents": 12,  # likewise, below the spans of turns; tools without ids
    "langgraph": 6,  # every span names its node
    "smolagents": 6,  # LLM spans without ids
}
NAMES = ("planner", "researcher", "coder", "critic", "writer", "browser", "tester", "router")
MCP, GUARD, RUNNER = "mcp_helper", "guardrail", "tools"
_MS = 1_000_000


@dataclass
class Agent:
    """One run of an agent. `tool`: the tool that it runs in, where it is one; `process`: 0 is the main one."""

    name: str
    outer: Agent | None
    begin: float
    end: float = 0.0
    tool: Tool | None = None
    process: int = 0
    instrumented: bool = True
    client: bool = False  # its HTTP client sends traceparent
    remembers: bool = False  # its calls repeat what was said before
    last: Call | None = None


@dataclass
class Call:
    agent: Agent
    begin: float
    end: float
    said: list[dict[str, Any]]
    asked: list[str] = field(default_factory=list)  # tool call ids
    turn: int = 0
    before: Call | None = None  # the call whose conversation this one goes on with


@dataclass
class Tool:
    agent: Agent
    call_id: str
    name: str
    begin: float
    end: float = 0.0
    turn: int = 0


@dataclass(frozen=True)
class Faults:
    """What was lost or shifted. Shares are of agents' spans (`lost`), of exporters' batches, of traces (`sampled_out`)."""

    lost: float = 0.0
    lost_batches: float = 0.0
    sampled_out: float = 0.0
    gateway_ms: float = 0.0  # the gateway's clock less the agents'
    helper_ms: float = 0.0  # that of other processes less the agents', either way
    late: float = 0.0  # share of requests that come last, and a second time
    uninstrumented: float = 0.0  # share of runs in which one agent emits nothing


class Run:
    """What happened in one attempt."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.agents: list[Agent] = []
        self.calls: list[Call] = []
        self.tools: list[Tool] = []
        self.names = self.random.sample(NAMES, len(NAMES))
        self.count = 0
        now = 200.0
        kind = self.random.choices(("team", "handoff", "chat"), (6, 2, 2))[0]
        if kind == "team":
            now = self.work(self.names[0], None, now, 0)
        elif kind == "handoff":
            history = None
            for name in self.names[: self.random.randint(2, 4)]:
                now = self.work(name, None, now, 1, history=history) + self.random.uniform(1, 30)
                # Half of the handoffs pass the conversation on.
                history = self.calls[-1] if self.random.random() < 0.5 else None
        else:
            now = self.chat(now)
        self.end = max([now, *(call.end for call in self.calls), *(agent.end for agent in self.agents)]) + 50

    def agent(self, name: str, outer: Agent | None, begin: float, tool: Tool | None = None, process: int = 0) -> Agent:
        client, remembers = self.random.random() < 0.5, self.random.random() < 0.8
        made = Agent(name, outer, begin, tool=tool, process=process, client=client, remembers=remembers)
        self.agents.append(made)
        return made

    def call(self, agent: Agent, now: float, turn: int, tools: int = 0) -> Call:
        now += self.random.choice((2, 8, 30))
        length = min(self.random.lognormvariate(5.6, 0.9), 5000)
        self.count += 1
        said = [{"role": "user", "content": f"do part {self.random.randint(0, 10**9)}"}]
        asked = [f"call_{self.random.randrange(16**8):08x}" for _ in range(tools)]
        made = Call(agent, now, now + length, said, asked, turn, agent.last if agent.remembers else None)
        agent.last = made
        self.calls.append(made)
        return made

    def work(
        self,
        name: str,
        outer: Agent | None,
        now: float,
        depth: int,
        tool: Tool | None = None,
        history: Call | None = None,
    ) -> float:
        """An agent from its start to its end: turns of a call and what it asked for, and a last call."""
        dice = self.random
        this = self.agent(name, outer, now, tool, process=outer.process if outer else 0)
        this.last = history
        waits: list[float] = []
        if depth < 3 and dice.random() < 0.06:  # a guardrail reads along with the first call
            waits.append(self.work(GUARD, this, now + 3, 9))
        for turn in range(dice.randint(0, 3) if depth < 9 else 0):
            kinds = {"tool": 45, "parallel tools": 8, "mcp": 5}
            if depth < 3:
                kinds |= {"inner": 14, "as tool": 12, "crew": 8, "namesakes": 5, "recursion": 3, "background": 5}
            kind = dice.choices(list(kinds), list(kinds.values()))[0]
            asks = {"tool": 1, "parallel tools": 2, "mcp": 1, "as tool": 1, "recursion": 1}.get(kind, 0)
            call = self.call(this, now, turn, asks)
            now = call.end + dice.uniform(1, 20)
            for ask in call.asked:
                now = max(now, self.run_tool(this, ask, kind, call.end + dice.uniform(1, 20), depth, turn))
            if kind == "inner":
                now = self.work(self.other(name), this, now, depth + 1)
            elif kind in ("crew", "namesakes"):
                crew = dice.sample(self.names, dice.randint(2, 3)) if kind == "crew" else [self.other(name)] * 2
                now = max(self.work(inner, this, now + dice.uniform(0, 40), depth + 1) for inner in crew)
            elif kind == "background":
                waits.append(self.work(self.other(name), this, now, depth + 1))
        last = self.call(this, now, 3)
        now = max([last.end, *waits]) + dice.uniform(1, 20)
        if not waits and dice.random() < 0.02:  # cut off: the gateway's record outlives the agent
            now = last.end - min(dice.uniform(0, 300), (last.end - last.begin) / 2)
        this.end = now
        return now

    def run_tool(self, agent: Agent, ask: str, kind: str, now: float, depth: int, turn: int) -> float:
        dice = self.random
        tool = Tool(agent, ask, "search", now, turn=turn)
        self.tools.append(tool)
        if kind in ("as tool", "recursion"):
            name = agent.name if kind == "recursion" else self.other(agent.name)
            tool.name, tool.end = f"ask_{name}", self.work(name, agent, now + 2, depth + 1, tool) + 2
        elif kind == "mcp":  # a server in another process asks the model itself
            server = self.agent(MCP, agent, now + 3, tool, process=1)
            server.end = self.call(server, now + 3, 0).end + 3
            tool.name, tool.end = "mcp", server.end + 2
        else:
            if dice.random() < 0.04:  # an agent that runs the others' tools, and asks for none
                tool.agent = self.agent(RUNNER, agent, now - 1)
            tool.end = now + dice.uniform(2, 300)
            if tool.agent is not agent:
                tool.agent.end = tool.end + 1
        return tool.end + dice.uniform(1, 10)

    def chat(self, now: float) -> float:
        """Agents that take turns, chosen by a manager's calls or by none."""
        manager = self.agent("manager", None, now)
        chooses = self.random.random() < 0.5
        speakers = self.names[:3]
        for turn in range(self.random.randint(2, 5)):
            if chooses:
                now = self.call(manager, now, turn).end + 3
            now = self.work(self.random.choice(speakers), manager, now, 2) + 5
        manager.end = now + 5
        return now

    def other(self, name: str) -> str:
        return self.random.choice([n for n in self.names[:5] if n != name])


def system(run: Run, call: Call, prompts: Prompts) -> list[dict[str, Any]]:
    """The leading system messages of a call."""
    name = call.agent.name
    own = f"You are {name}, one of a team. Your task is what a {name} does well; answer briefly, and say so when you cannot."
    text = {
        "own": own,
        "shared": "You are a helpful assistant.",
        "partly": "You are a helpful assistant." if name in NAMES[::2] else own,
        "absent": "",
        "changing": f"{own}\n\nToday is 2026-11-{run.random.randint(1, 28):02d}. Session {run.random.randrange(16**12):012x}."
        f"\n\nKnown so far:\n- {' '.join(run.random.choices(NAMES, k=12))}",
    }[prompts]
    return [{"role": "system", "content": text}] if text else []


def truth(run: Run, number: int) -> Iterator[tuple[str, Call]]:
    """(response id, call) of every call."""
    return ((f"chatcmpl-{number}-{place}", call) for place, call in enumerate(run.calls))


def emit(run: Run, number: int, prompts: Prompts, faults: Faults, style: str | None = None) -> Attempt:
    """The run as the lake would have it: agents' spans of a framework, the gateway's of every call, the root and a reward."""
    dice = random.Random(run.random.random())
    chosen = style or dice.choices(list(STYLES), list(STYLES.values()))[0]
    made = Emitter(run, number, chosen, dice, prompts, faults)
    made.all()
    return made.attempt


class Emitter:
    def __init__(
        self, run: Run, number: int, style: str, dice: random.Random, prompts: Prompts, faults: Faults
    ) -> None:
        self.run, self.style, self.dice, self.prompts, self.faults = run, style, dice, prompts, faults
        self.attempt = Attempt(f"r.{number:05d}", f"a{number}", group=f"g{number // 4}")
        self.attempt.root(at=(0, run.end / 1000), span_id=f"{number:08x}root0000")
        self.number = number
        self.ids = iter(range(1, 1 << 30))
        self.shift = [0.0, dice.choice((-1, 1)) * faults.helper_ms]  # by process
        self.spans: dict[int, str] = {}  # of agents and tools, by their identity
        self.turns: dict[tuple[int, int], str] = {}
        self.places = {id(call): place for place, call in enumerate(run.calls)}
        if faults.uninstrumented and dice.random() < faults.uninstrumented:
            silent = dice.choice(run.agents).name
            for agent in run.agents:
                agent.instrumented = agent.name != silent

    def all(self) -> None:
        main = f"{self.number:016x}{0:016x}"
        top = None
        if self.style in ("crewai", "langgraph"):
            top = self.span(main, None, "chain", "Crew", 150, self.run.end - 20)
        for agent in sorted(self.run.agents, key=lambda a: a.begin):
            self.emit_agent(agent, top, main)
        for tool in self.run.tools if self.spans_of_tools else ():
            self.span_of_tool(tool)
        for response_id, call in truth(self.run, self.number):
            self.emit_call(call, response_id)
        self.degrade()
        self.attempt.reward(self.dice.random(), at=self.run.end / 1000)

    def span(
        self,
        trace: str,
        parent: str | None,
        op: str,
        name: str,
        begin: float,
        end: float,
        process: int = 0,
        **columns: Any,
    ) -> str:
        begin, end = (at + self.shift[process] for at in (begin, end))
        own = {
            "trace_id": trace,
            "span_id": f"{self.number:08x}{next(self.ids):08x}",
            "resource": [("p", str(process))],
        }
        return self.attempt.span(name, (begin / 1000, end / 1000), parent, op=op, **own, **columns)

    def emit_agent(self, agent: Agent, top: str | None, main: str) -> None:
        if not agent.instrumented:
            return
        outer = agent.outer
        while outer is not None and not outer.instrumented:
            outer = outer.outer
        tool = agent.tool is not None and agent.tool.agent is outer and self.spans_of_tools
        parent = self.span_of_tool(agent.tool) if tool and agent.tool else self.spans.get(id(outer), top)
        if (self.style == "autogen" and not tool) or (agent.process and self.dice.random() < 0.5):
            parent = None  # a message through the runtime, a server without propagation
        trace = main if parent else f"{self.number:016x}{next(self.ids):016x}"
        self.spans[id(agent)] = self.span(
            trace, parent, "agent", agent.name, agent.begin, agent.end, agent.process, agent_name=agent.name
        )
        if self.style == "openai_agents":
            calls = [call for call in self.run.calls if call.agent is agent]
            for call in calls:
                self.turns[id(agent), call.turn] = self.span(
                    trace, self.spans[id(agent)], "chain", "turn", call.begin - 1, call.end + 1, agent.process
                )

    @property
    def spans_of_tools(self) -> bool:
        return self.style != "smolagents"

    def span_of_tool(self, tool: Tool) -> str | None:
        """Made when first asked for: agents lie in them."""
        parent = self.spans.get(id(tool.agent))
        if id(tool) not in self.spans and parent:
            columns = {"agent_name": tool.agent.name} if self.style == "langgraph" else {}
            if self.style in ("autogen", "clients", "pydantic_ai"):
                columns["tool_call_id"] = tool.call_id
            trace = next(row["trace_id"] for row in self.attempt.rows if row["span_id"] == parent)
            process = tool.agent.process
            self.spans[id(tool)] = self.span(
                trace, parent, "tool", tool.name, tool.begin, tool.end, process, tool_name=tool.name, **columns
            )
        return self.spans.get(id(tool))

    def emit_call(self, call: Call, response_id: str) -> None:
        agent = call.agent
        parent = self.turns.get((id(agent), call.turn), self.spans.get(id(agent)))
        trace = next((row["trace_id"] for row in self.attempt.rows if row["span_id"] == parent), "")
        messages = {
            "input_messages": json.dumps(system(self.run, call, self.prompts) + self.heard(call)),
            "output_messages": json.dumps([self.answer(call)]),
        }
        begin, end = call.begin - 3, call.end + 3
        declared = None
        if parent and self.style in ("pydantic_ai", "openai_agents"):
            named = {"agent_name": agent.name} if self.style == "pydantic_ai" else {}
            self.span(trace, parent, "llm", "chat", begin, end, agent.process, response_id=response_id, **named)
        elif parent and self.style == "langgraph":
            self.span(trace, parent, "llm", "ChatOpenAI", begin, end, response_id=response_id, agent_name=agent.name)
        elif parent and self.style == "smolagents":
            self.span(trace, parent, "llm", "generate", begin, end, agent.process, **messages)
        elif parent and self.style == "clients" and agent.client:
            declared = self.span(trace, parent, "other", "POST", begin, end, agent.process)
        shift = self.faults.gateway_ms
        at = ((call.begin + shift) / 1000, (call.end + shift) / 1000)
        self.attempt.call(
            [1, 2],
            [3],
            at,
            declared,
            response_id=response_id,
            span_id=f"{self.number:08x}{next(self.ids):08x}",
            **messages,
        )
        if declared:
            self.attempt.rows[-1]["trace_id"] = trace

    def answer(self, call: Call) -> dict[str, Any]:
        names = {tool.call_id: tool.name for tool in self.run.tools}
        asked = [
            {"id": ask, "type": "function", "function": {"name": names[ask], "arguments": "{}"}} for ask in call.asked
        ]
        said = {"role": "assistant", "content": f"done {self.number} {self.places[id(call)]}"}
        return said | ({"tool_calls": asked} if asked else {})

    def heard(self, call: Call) -> list[dict[str, Any]]:
        """The messages behind the system's: what was said before, if the agent remembers it."""
        if call.before is None:
            return call.said
        results = [{"role": "tool", "tool_call_id": ask, "content": "found"} for ask in call.before.asked]
        return [*self.heard(call.before), self.answer(call.before), *results, *call.said]

    def degrade(self) -> None:
        """Times of receipt by the gateway's clock; then what is lost."""
        faults, dice, rows = self.faults, self.dice, self.attempt.rows
        exported: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(rows[1:], key=lambda r: r["end_ns"]):
            if row["policy"]:
                row["received_ns"] = row["end_ns"] + _MS // 5
            else:
                exported.setdefault(dict(row["resource"])["p"], []).append(row)
        gone: set[int] = set()
        for process, spans in exported.items():
            behind = int((faults.gateway_ms - self.shift[int(process)]) * _MS)
            for first in range(0, len(spans), 8):
                batch = spans[first : first + 8]
                lost = dice.random() < faults.lost_batches
                sent = batch[-1]["end_ns"] + dice.randint(3 * _MS, SECOND // 2)
                for row in batch:
                    row["received_ns"] = sent + behind
                    gone |= {id(row)} if lost else set()
        traces = {
            t: dice.random() < faults.sampled_out for t in sorted({r["trace_id"] for r in rows[1:] if not r["policy"]})
        }
        for row in rows[1:]:
            agent = row["op"] == "agent" and dice.random() < faults.lost
            if not row["policy"] and (agent or traces[row["trace_id"]]):
                gone.add(id(row))
        kept = [row for row in rows if id(row) not in gone]
        late = [
            row | {"record_offset": len(rows) + at} for at, row in enumerate(kept[1:]) if dice.random() < faults.late
        ]
        self.attempt.rows = kept + late
