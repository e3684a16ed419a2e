"""vLLM's CPU build, with its engine forked from its server.

By itself it starts an engine process and a worker process, each of which imports torch and vLLM anew, one after another.
That is nearly all of its start-up time and half of its memory. Here the engine is forked from the server after everything is
imported, and runs the model itself: one import, pages shared, two processes instead of four. The pieces are vLLM's public
launcher functions; of vLLM itself one thing is replaced, how LoRA is computed (vllm_lora.py). CUDA must not be forked.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
from argparse import Namespace

from lightning_core.process.linux import end_with_parent

# What the engine imports when it loads a model; whatever is missing here is only imported later, in the engine.
ENGINE_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.model_loader.default_loader",
)
LORA = "lightning_core.cpu_demo.vllm_lora.ByAdapter"


async def serve(args: Namespace) -> None:
    """Serve as `vllm.entrypoints.launchers.api_server.entry.run_server` does, with the engine forked, not spawned."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.system_utils import decorate_logs
    from vllm.v1.engine.async_llm import AsyncLLM

    decorate_logs("APIServer", skip_if_decorated=True)
    signal.signal(signal.SIGTERM, _interrupt)
    address, sock = setup_server(args, reuse_port=False)
    with contextlib.closing(sock):
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
        for module in ENGINE_MODULES:
            importlib.import_module(module)
        import_model(config.model_config)
        # The platform has just asked for `mp` and `spawn`, because it sets OpenMP's variables for its workers; ours were
        # set before this process began.
        config.parallel_config.distributed_executor_backend = "uni"
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        current_platform.get_punica_wrapper = lambda: LORA
        # So that kill -9 of the server leaves no engine holding memory.
        os.register_at_fork(after_in_child=lambda: end_with_parent(os.getppid()))
        # Frozen objects are not visited by the collector, so their pages stay shared.
        gc.collect()
        gc.freeze()
        engine = AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=args.enable_log_requests,
            disable_log_stats=args.disable_log_stats,
        )
        try:
            shutdown = await build_and_serve(engine, address, sock, args)
        finally:
            engine.shutdown(timeout=config.shutdown_timeout)
        await shutdown


def import_model(model_config: object) -> None:
    """Import the module of the model's class; the registry would otherwise look at it in one more process."""
    from vllm.model_executor.model_loader.utils import get_model_cls

    get_model_cls(model_config)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("terminated")
