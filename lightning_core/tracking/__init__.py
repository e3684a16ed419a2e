"""Tell how a run goes: signals of each epoch to any number of backends, the alarm, the registry.

Rooms:
    signals.py         an epoch's signals, and who gets them   alarm.py           signals against the settings' limits
    mlflow_backend.py  MLflow's record of a run                registry.py        MLflow's registry of versions
    prune.py           versions that go from both              prometheus.py      signals for `/metrics`
    page.py            a run on one page, for Prefect's UI   traces.py  rollouts as MLflow's traces
    prompts.py         MLflow's registry of prompts
"""
