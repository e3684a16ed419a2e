"""Policies: where their weights come from, their versions on disk, the vLLM that serves them, and redeploying.

Weights:
    model.py                 finds or fetches the base weights   store.py         versions of a policy on disk
    version_manifest.py      what a version says of itself       fit.py           does a version fit its parent
    tensor_files.py          safetensors without torch           space.py         the disk that a run takes
    prune.py                 versions that nothing needs         removed.py       which were removed, and when

vLLM:
    vllm.py          starts, finds, watches, stops it   vllm_command.py  its command line and environment
    vllm_main.py     its process                        vllm_worker.py   methods more for its worker
    vllm_log.py      what its log says                  vllm_client.py   its administrative routes
    supervisor.py    starts it again

A new version:
    redeploy.py  full weights into a running vLLM       adapters.py  adapters beside the older ones
    probe.py     does it compute what the trainer did   sharing.py   who is on which GPU
    sleep.py     trainer and vLLM on one card

Nothing here imports torch or vLLM, but what runs in their own processes.
"""
