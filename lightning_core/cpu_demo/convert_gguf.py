"""GGUF → a folder of fp32 safetensors with tokenizer and chat template, as a process of its own: it gives back the
memory that loading takes (about four times the weights).

    python -m lightning_core.cpu_demo.convert_gguf WEIGHTS.gguf FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write the weights of `gguf`, dequantised to fp32, with its tokenizer into the empty or new `folder`."""
    # transformers looks whether vllm is there and then imports it: half a minute for nothing.
    sys.modules["vllm"] = None  # type: ignore[assignment]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The tensors are plain floats now; with these left in, loaders would look for quantised ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
