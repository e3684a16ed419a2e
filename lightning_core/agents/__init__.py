"""Running attempts of any agent, a Python callable or a command, and grading what came of them.

`attempt` says what is asked and what came of it, `environment` what an attempt sees, `runner` runs one from its start
span to its root span, `pool` owns the `zygote` that attempts are forked from, `child` is what a fork does, `processes`
finds what agents leave behind, `capture` keeps what they print.

Nothing is imported here: the zygote must stay as small as a fresh interpreter.
"""
