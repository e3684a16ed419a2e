"""The engine of an epoch: what is rolled out, which stages are done, the SQL from spans to sequences, and what runs beside it.

epoch.py has the handles, `Run` and `Epoch`, that all of it takes.

Before:
    task_file.py  tasks, from a file or a function      draw.py        those that a sampler draws
    plan.py       which of them an epoch rolls out      resume.py      rollouts that are finished
    patterns.py   `agent_match` that is computed        finetune.py    epochs of others' rollouts
    production.py  rollouts of agents in production     prompts.py     versions of prompts that they are served
    imported.py   rollouts that were run elsewhere, of  chat_file.py   chats, or
                                                        trace_file.py  traces

Stages:
    stages.py      each done once for what it reads     stage_keys.py  what each reads, as a key
    decoding.py    the spool into the lake              services.py    gateway and vLLM, while they are needed
    deploy.py      versions into vLLM and the gateway  training.py    sequences into a published version

The SQL:
    derive.py   spans → sequences                       derive_inputs.py  what settings give to the SQL
    buckets.py  whole rollouts at a time                tokenize.py       token ids of calls that have none

After:
    held_out.py  the share right, with its interval     gain.py        first evaluation against last
    report.py    a run's epochs                         what_if.py  the same rollouts by other settings
    prompt_search.py  better prompts, by such rollouts
"""
