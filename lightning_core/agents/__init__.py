"""Run attempts of any agent, a Python callable or a command, and grade what they leave behind.

An attempt:
    attempt.py      what is asked, and its result          environment.py  what an attempt sees
    runner.py       from its start span to its root span   grading.py      rewards by the settings' grader
    lit_agent.py    agents written for Agent Lightning     secrets.py      values that are not stored

What an agent is:
    program.py  from `agent:` to what a pool runs   source.py   an agent as a digest
    venv.py     the Python it runs with

Processes (standard library alone, since some run in the agent's Python):
    pool.py        the owner of the zygote           zygote.py      imports once, forks an attempt each
    child.py       a fork that becomes the attempt   agent_file.py  the agent's file, compiled once
    capture.py     what an attempt prints, bounded   processes.py   what it leaves running

Nothing is imported here: the zygote must stay as small as a fresh interpreter.
"""
