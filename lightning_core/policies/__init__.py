"""Policies: where their weights come from, their versions on disk, the vLLM that serves them, and redeploying.

`model` finds or fetches the base weights, `store` keeps the versions, `vllm` runs the server process, `redeploy` swaps
versions in it. Nothing here imports torch or vLLM: those live in processes of their own.
"""
