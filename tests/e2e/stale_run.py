"""`lightning-flows train`, with a vLLM that goes back to the base's weights after every swap, once the swap was verified.

Under the name of the new adapter it holds one that adds nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from lightning_core.epoch import deploy
from lightning_core.policies.adapters import lora_name
from lightning_core.policies.redeploy import Redeployed
from lightning_core.policies.vllm import VllmServer
from lightning_flows.flows.cli import main

load_lora = deploy.load_lora
_loaded: dict[str, Redeployed] = {}


def loaded_in_vain(vllm: VllmServer, policy: str, version: str, path: Path, **more: Any) -> Redeployed:
    name = lora_name(policy, version)
    if name in _loaded:  # the next epoch would verify it again, and end the run
        return _loaded[name]
    done = _loaded[name] = load_lora(vllm, policy, version, path, **more)
    empty = Path(tempfile.mkdtemp()) / "adapter"
    shutil.copytree(path, empty)
    (file,) = empty.glob("*.safetensors")
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    with vllm.client() as client:
        client.unload_lora(name)
        client.load_lora(name, empty)
    return done


def constant(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    """A grader that looks at nothing."""
    return 0.5


if __name__ == "__main__":
    deploy.load_lora = loaded_in_vain
    main()
