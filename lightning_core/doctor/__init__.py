"""`lightning-flows doctor`: run an agent once, as a rollout would, and report what training would lack.

Rooms:
    examine.py   one examination, start to end        trial.py     rollouts without a flow
    findings.py  what an agent lacks, with remedies   silent.py    a command that called no model
    canned.py    the model, where no vLLM runs
"""
