"""The vLLM server process: vLLM's own OpenAI server; its CPU build started so that a small machine can afford it.

    python -m lightning_core.policies.vllm_main --model FOLDER --uds SOCKET …    (arguments as `vllm serve` takes them)

On a GPU vLLM's own way is taken unchanged.
"""

from __future__ import annotations


def main() -> None:
    """Parse vLLM's command line and serve until SIGTERM or SIGINT."""
    import uvloop
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser(description=__doc__)).parse_args()
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    if current_platform.is_cpu():
        from lightning_core.cpu_demo.forked_engine import serve

        uvloop.run(serve(args))
    else:
        uvloop.run(entry.run_server(args))


if __name__ == "__main__":
    main()
