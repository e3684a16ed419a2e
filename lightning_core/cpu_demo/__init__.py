"""What exists only so that two cores and a few GB suffice; where a GPU computes, none of it is imported.

| module | what it saves |
|---|---|
| `forked_trainings` | 5 to 10 s of imports a training: within a run, trainings are forked from one process that has them |
| `forked_engine` | most of vLLM's start and half of its memory: its engine is forked from its server, in place of two new processes |
| `vllm_lora` | LoRA on vLLM's CPU build: one matrix product an adapter (1.5 ms on the logits of 32 tokens), not one a token (96 ms) |
| `pages` | half of a step of `sft`: freed pages stay with the trainer, in place of being cleared again |
| `convert_gguf` | a hub: a small model comes out of a package of the registry, and is converted in a process of its own |

`convert_gguf` also runs on a machine with a GPU whose `policies[].model` is a package.
"""
