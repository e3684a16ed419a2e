"""What exists only so that two cores and a few GB suffice; where a GPU computes, none of it is imported.

    forked_engine.py     saves most of vLLM's start and half of its memory: its engine is forked from its server
    vllm_lora.py         LoRA on vLLM's CPU build by one matrix product an adapter, not one a token: 1.5 ms in place of 96 ms
    pages.py             saves half of a step of `sft`: freed pages stay with the trainer, and are not cleared again
    convert_gguf.py      saves a hub: a small model comes out of a package of the registry

`convert_gguf` also runs on a machine with a GPU whose `policies[].model` is a package.
"""
