"""What would end a run later is found before it begins: settings, tasks, agent, grader, rules, GPUs, memory, disk.

    found = check(settings, "train")      # lightning_core.checks.check: one line each
    require(settings, "train")            # raises one SettingsError with all that is wrong

The user's code is imported in child processes with a deadline (`user_code`, `imports`), so that a module that hangs or
ends its process ends the check with a line that says so. `machine` looks at this machine. Neither Prefect nor torch is
imported. Nothing is imported here: an agent's own Python runs `imports`.
"""
