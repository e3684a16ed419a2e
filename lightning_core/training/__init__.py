"""Training: sequences in, new weights out, in a process of its own.

From a flow (none of these pulls in torch):
    launch.py      that process: started, followed, ended job.py         what goes in, and what is looked over
    resident.py    what stays in it for the next job
    weights.py     folders of weights                     code.py        what the code of a training is
    export.py      a version as a folder of its own       errors.py      why one could not be
    memory.py      what fits a GPU

A job, start to end:
    train_job.py    all of it                             inputs.py         a micro-batch as TRL takes it
    dataset.py      reading and checking sequences        micro_batches.py  steps, micro-batches, weights of the loss
    steps.py        taking the steps, resuming after one  schedule.py       what changes over a run
    checkpoint.py   the state within an epoch             state.py          the optimizer's state between epochs
    new_version.py  what a job leaves behind              token_rows.py     what a step did with each token

The trainer:
    trl_bridge.py  every private hook of TRL              trainer.py     any algorithm on planned steps
    packing.py     prefix tries, layouts of a pass        attention.py   attention along a trie
    scoring.py     log-probabilities of a layout          correction.py  what the weights say before a step
    hardware.py    device and precision                   gather.py      whole tensors of split models
    zero.py        the same, of DeepSpeed's
    token_scores.py what an algorithm makes of each token first
    weighing.py    SQL from that to advantages

The algorithms themselves: lightning_core/algorithms. Left out: sampling and rewards, which happen elsewhere.
"""
