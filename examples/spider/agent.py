"""LangGraph: a writer writes SQL, it is executed, a checker judges it, a rewriter mends it; three tries at most.

Writer and rewriter are the policy; the checker has a model name of its own, and is not trained.
"""

import json
import re
import sqlite3
import sys
from typing import Any, TypedDict

from database import run as run_query
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

MOST_TRIES = 3
CHECKED = (  # what the checker is shown: small models need it
    ("How many books are there?", "SELECT count(*) FROM book", "1 rows: [(24,)]", "RIGHT"),
    ("What is the highest price?", "SELECT name FROM book", "24 rows: [('Emma',), ('Ulysses',)]", "WRONG"),
    ("List the names of all authors.", "SELECT name FROM author", "9 rows: [('Austen',), ('Joyce',)]", "RIGHT"),
    ("Which books are from 1999?", "SELECT title FROM book WHERE year = 9", "0 rows: []", "WRONG"),
)
policy = ChatOpenAI(model="policy", max_tokens=128, temperature=0)
frozen = ChatOpenAI(model="checker", max_tokens=8, temperature=0)


class State(TypedDict, total=False):
    question: str
    schema: str
    database: str
    query: str
    rows: str
    verdict: str
    tries: int


def sql(text: str) -> str:
    """The query in a reply: of its code block, or else of its first SELECT on."""
    block = re.search(r"```(?:sql)?\s*(.*?)```", text, re.DOTALL | re.IGNORECASE)
    found = re.search(r"\b(?:SELECT|WITH)\b.*", block[1] if block else text, re.DOTALL | re.IGNORECASE)
    return found[0].split(";")[0].strip() if found else text.strip()


def writer(state: State) -> State:
    says = f"Write one SQLite query that answers the question. Tables:\n{state['schema']}"
    reply = policy.invoke([("system", says), ("user", state["question"])])
    return {"query": sql(reply.text), "tries": 1}


def executor(state: State) -> State:
    try:
        rows = execute.invoke({"query": state["query"], "database": state["database"]})
    except sqlite3.Error as error:
        return {"rows": f"error: {error}"}
    return {"rows": rows}


@tool
def execute(query: str, database: str) -> str:
    """The first rows of a query."""
    rows = run_query(database, query)
    return f"{len(rows)} rows: {rows[:3]}"


def checker(state: State) -> State:
    if state["rows"].startswith("error"):
        return {"verdict": "WRONG"}
    messages = [("system", "Does the query answer the question? Say RIGHT or WRONG.")]
    for question, query, rows, verdict in (*CHECKED, (state["question"], state["query"], state["rows"], None)):
        messages.append(("user", f"Question: {question}\nQuery: {query}\nIt gives {rows}"))
        if verdict is not None:
            messages.append(("assistant", verdict))
    return {"verdict": frozen.invoke(messages).text}


def rewriter(state: State) -> State:
    says = f"Mend the SQLite query, so that it answers the question. Tables:\n{state['schema']}"
    shown = (
        f"Question: {state['question']}\nQuery: {state['query']}\nIt gives {state['rows']}\nChecked: {state['verdict']}"
    )
    reply = policy.invoke([("system", says), ("user", shown)])
    return {"query": sql(reply.text), "tries": state["tries"] + 1}


def next_step(state: State) -> str:
    done = "RIGHT" in state["verdict"].upper() or state["tries"] >= MOST_TRIES
    return END if done else "rewriter"


def graph() -> Any:
    made = StateGraph(State)
    for step in (writer, executor, checker, rewriter):
        made.add_node(step.__name__, step)
    made.add_edge(START, "writer")
    made.add_edge("writer", "executor")
    made.add_edge("executor", "checker")
    made.add_conditional_edges("checker", next_step)
    made.add_edge("rewriter", "executor")
    return made.compile()


def run(task: dict[str, Any]) -> str:
    return str(graph().invoke({key: task[key] for key in ("question", "schema", "database")})["query"])


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
