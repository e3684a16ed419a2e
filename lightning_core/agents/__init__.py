"""Run attempts of any agent, a Python callable or a command, and grade what they leave behind.

An attempt:
    attempt.py            what is asked, and its result          environment.py  what an attempt sees
    runner.py             from its start span to its root span   grading.py      rewards by the settings' grader
    attempt_outcome.py    how it ended                           attempt_folder.py  what it leaves, read without trust
    lit_agent.py          agents written for Agent Lightning     secrets.py      values that are not stored
    turns.py              beside others, or alone

What an agent is:
    program.py  from `agent:` to what a pool runs   source.py   an agent as a digest
    venv.py     the Python it runs with

Processes (lightning_core.process; standard library alone where they run in the agent's Python):
    pool.py        the owner of their fork server           capture.py     what an attempt prints, bounded
    shared.py      one pool for all that run the agent
    child.py       what that and its forks do               agent_file.py  the agent's file, compiled once

Nothing is imported here: a fork server must stay as small as a fresh interpreter.
"""
