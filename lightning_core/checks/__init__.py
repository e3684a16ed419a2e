"""Find what would end a run later before it begins: settings, tasks, agent, grader, rules, GPUs, memory, disk.

    found = check(settings, "train")      # lightning_core.checks.check: one line each
    require(settings, "train")            # raises one SettingsError with all that is wrong

Files:
    check.py         all checks of one kind of work       result.py     what one check found
    user_imports.py  which code of the user's to import   imports.py    the child that imports it
    machine.py       what this machine has              cards.py     its GPUs

The user's code is imported in child processes with a deadline, so that a module that hangs or ends its process ends the
check with a line in its result. Neither Prefect nor torch is imported. Nothing is imported here, since an agent's own
Python runs `imports`.
"""
