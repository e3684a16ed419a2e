"""Run other processes, so that none outlives its run, also where its owner was killed.

    linux.py      does a process run; end a group         spawn.py        start one with a log, wait until it is ready
    own.py        what one owns while it lives            supervise.py    start it again, at growing intervals
    forks.py      have a fork server fork, end a fork     fork_server.py  imports once, forks, watches, ends
    monitor.py    peak memory of this process and all under it
    interrupts.py note Ctrl-C and SIGTERM, and keep them out of a write

`fork_server` and `linux` run in an agent's own Python, and import the standard library alone. Nothing is imported here: a
fork server must stay as small as a fresh interpreter.
"""
