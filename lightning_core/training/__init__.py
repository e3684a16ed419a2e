"""Training: sequences in, new weights out, in a process of its own.

    dataset.py    reading and checking sequences          plan.py      steps, micro-batches, weights of the loss
    packing.py    prefix tries, layouts of a pass         scoring.py   log-probabilities of a layout
    trainer.py    TRL's GRPOTrainer fed with a plan       weights.py   folders of weights
    state.py      optimizer state between epochs          job.py       the job, start to end
    launch.py     starting that process from a flow     epoch.py     from the lake to a published version
    grpo.py       the job of `algorithm: grpo`          outcome.py   what a job leaves behind
    sft.py        the job of `algorithm: sft`           sft_trainer.py TRL's SFTTrainer fed with a plan
    course.py     steps of a job, told and kept         stepping.py  what both trainers do around a step
    checkpoint.py going on within an epoch              schedule.py  what changes over a run

Import `launch` and `job` from a flow: neither pulls in torch. Left out: sampling and rewards, which happen elsewhere.
"""
