"""A flow with a canned model in vLLM's place, for tests of everything else: server, rollouts, SQL, trainer, record.

    python -m tests.e2e.without_vllm train-epoch settings.yaml

Replies have random letters and token ids, so groups have spread. Redeploying only changes the gateway's route.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lightning_core.epoch import epoch
from lightning_core.epoch.production import Choice
from lightning_core.epoch.services import Services, base_model, gateway_running
from lightning_core.settings_file import load_settings
from lightning_flows import Run

_PARTS = (
    "lightning_flows.flows.train_epoch",
    "lightning_flows.flows.evaluate",
    "lightning_flows.flows.optimize_prompts",
    "lightning_flows.tasks.overlap",
)  # what other flows are made of
LOGPROB = -5.6  # about that of any of the tiny model's tokens


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def text(self, asked: dict[str, Any]) -> str:
        """What it says to a request of /v1/chat/completions."""
        return "".join(random.choice("abcDEF") for _ in range(8))

    def do_POST(self) -> None:
        text = self.text(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        ids = [random.randrange(10, 250) for _ in text]
        content = [{"token": c, "logprob": LOGPROB, "bytes": [ord(c)], "top_logprobs": []} for c in text]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        choice |= {"token_ids": ids, "logprobs": {"content": content}}
        reply = {"id": f"chatcmpl-{random.getrandbits(64):x}", "object": "chat.completion", "created": 1}
        reply |= {"model": "policy", "choices": [choice], "prompt_token_ids": list(range(10, 30))}
        reply |= {"usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


MODELS: list[type[Model]] = [Model]  # the last of them answers


@contextlib.contextmanager
def running(run: epoch.Run, say: Callable[[str], None]) -> Iterator[Services]:
    model = ThreadingHTTPServer(("127.0.0.1", 0), MODELS[-1])
    threading.Thread(target=model.serve_forever, daemon=True).start()
    folder = base_model(run, say)
    with gateway_running(run, say) as server:
        route = {"upstream": f"http://127.0.0.1:{model.server_port}", "model": "policy"}
        current = run.policies["policy"].current()
        server.set_routes({"policies": {"policy": route | {"version": current}}, "aliases": run.settings.aliases})
        yield Services(server, None, folder)  # type: ignore[arg-type]
    model.shutdown()


def deploy(run: epoch.Run, services: Services, versions: dict[str, str]) -> None:
    routes = services.gateway.routes()
    routes["policies"]["policy"]["version"] = versions["policy"]
    services.gateway.set_routes(routes)
    run.policies["policy"].set_current(versions["policy"])


def patched(flow: str) -> Any:
    """The module of a flow, which asks the canned model from now on."""
    module, *parts = (
        importlib.import_module(name) for name in (f"lightning_flows.flows.{flow.replace('-', '_')}", *_PARTS)
    )
    for each in (module, *parts):
        each.running, each.deploy = running, deploy  # type: ignore[attr-defined]
    return module


def main(flow: str, settings_file: str) -> None:
    module = patched(flow)
    settings = load_settings(Path(settings_file), {})
    if flow == "learn":
        module.learn(settings, Choice(silent_s=0))
    elif flow == "evaluate":
        before = module.evaluate(settings)
        beside = module.evaluate(settings, policy_versions={"policy": "v0000"}, tasks=settings.tasks.train)
        sys.stdout.write(json.dumps([before, beside]))
    elif flow == "optimize-prompts":
        sys.stdout.write(json.dumps(module.optimize_prompts(settings)))
    elif flow == "train":
        Run(settings).train()
    else:
        module.train_epoch(settings, 0)


if __name__ == "__main__":
    main(*sys.argv[1:3])
