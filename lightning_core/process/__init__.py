"""Running other processes, so that none outlives its run, also where its owner was killed.

| module | |
|---|---|
| `linux` | whether a process runs, by pid and creation time; ending all of a group, or all that a fork left |
| `spawn` | start a process with a log, wait until it is ready, end it |
| `supervise` | start it again where it ended by itself, at growing intervals |
| `own` | which process owns something, while it lives |
| `fork_server` | a process that imports once what its forks need, and watches and ends them; its own side |
| `forks` | its owner's side: start it, have it fork, wait for a fork, end it |

`fork_server` and `linux` run in an agent's own Python, and import the standard library alone. Nothing is imported here: a
fork server must stay as small as a fresh interpreter.
"""
