"""vLLM's administrative routes over its Unix socket, as a small synchronous client.

These routes are unauthenticated; the socket lies in a folder that only this user can enter, and the gateway forwards
none of them.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

from lightning_core.errors import LightningError

# Ids every vocabulary has; what they mean is of no matter, only what the weights make of them.
CHECK_TOKENS = [5, 11, 7, 23, 13, 42, 3, 17]


class VllmError(LightningError):
    """vLLM did not start, died, or refused a request; the message says which, and what to do."""


class VllmTimeout(VllmError):
    """vLLM did not answer within the time given."""


class VllmClient:
    """One connection pool; use as a context manager. `timeout_s` is for a single request."""

    def __init__(self, socket: Path, timeout_s: float = 120) -> None:
        self.socket = socket
        # A connection for each request: after an error vLLM closes the one it came by, which the next request, often the
        # one that repairs things, would find out too late.
        # Nobody is verified over a socket: reading the certificates would take as long as loading an adapter.
        transport = httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0), verify=False)
        timeout = httpx.Timeout(timeout_s, connect=5)
        self._http = httpx.Client(transport=transport, base_url="http://vllm", timeout=timeout, trust_env=False)

    def __enter__(self) -> VllmClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, *, timeout_s: float | None = None, **kwargs: Any) -> Any:
        """Send one request; returns the decoded JSON (None for other bodies). Raises VllmError, VllmTimeout."""
        if timeout_s is not None:
            kwargs["timeout"] = timeout_s
        try:
            reply = self._http.request(method, path, **kwargs)
        except httpx.TimeoutException:
            raise VllmTimeout(f"vLLM at {self.socket}: no answer to {method} {path} in time") from None
        except httpx.TransportError as error:
            raise VllmError(
                f"vLLM at {self.socket} cannot be reached ({method} {path}: {error}); is it running?"
            ) from None
        if reply.status_code >= 400:
            raise VllmError(f"vLLM refused {method} {path} ({reply.status_code}): {reply.text[:500]}")
        if "json" not in reply.headers.get("content-type", ""):
            return None
        return reply.json()

    def healthy(self) -> bool:
        """Return whether vLLM answers and its engine lives."""
        try:
            self.request("GET", "/health", timeout_s=5)
        except VllmError:
            return False
        return True

    def models(self) -> list[str]:
        """Return the names that `model` may have in a request: the base model's, then the loaded adapters'."""
        return [entry["id"] for entry in self.request("GET", "/v1/models")["data"]]

    def pause(self, mode: Literal["wait", "keep"], timeout_s: float | None = None) -> None:
        """Pause vLLM; new calls queue. `wait` returns when the calls in flight are done, `keep` freezes them."""
        self.request("POST", "/pause", params={"mode": mode}, timeout_s=timeout_s)

    def resume(self) -> None:
        self.request("POST", "/resume")

    def sleep(self, level: int) -> None:
        """Give the card's memory back when the calls in flight are done; new calls queue."""
        self.request("POST", "/sleep", params={"level": str(level), "mode": "wait"})

    def wake_up(self, what: Literal["weights", "kv_cache"] | None = None) -> None:
        """Take memory for all, or for one of the two alone. With the last of them vLLM resumes."""
        self.request("POST", "/wake_up", params={"tags": what} if what else None)

    def reload_weights(self, folder: Path) -> None:
        """Load the safetensors of `folder` in place of the weights being served."""
        body = {"method": "lightning_reload", "kwargs": {"weights_path": str(folder)}}
        self.request("POST", "/collective_rpc", json=body)

    def reset_prefix_cache(self, tries: int = 10, wait_s: float = 0.05) -> None:
        """Forget cached prefixes: they were computed with other weights. A refusal comes as 200 with success=false."""
        for _ in range(tries):
            # What is frozen in flight is preempted and computed anew; its blocks could not be freed otherwise.
            reply = self.request("POST", "/reset_prefix_cache", params={"reset_running_requests": "true"})
            if reply.get("success") is True:
                return
            time.sleep(wait_s)
        raise VllmError(f"vLLM did not reset its prefix cache in {tries} tries; calls hold on to blocks of it")

    def set_version(self, version: str) -> None:
        self.request("POST", "/update_weight_version", json={"new_version": version})

    def version(self) -> str:
        return str(self.request("GET", "/weight_info")["weight_version"])

    def load_lora(self, name: str, folder: Path) -> None:
        self.request("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})

    def unload_lora(self, name: str) -> None:
        self.request("POST", "/v1/unload_lora_adapter", json={"lora_name": name})

    def compare(self, folder: Path) -> int:
        """Return how many tensors the workers hold exactly as they are in `folder`.

        Raises VllmError that names one that they do not.
        """
        body = {"method": "lightning_compare", "kwargs": {"weights_path": str(folder)}}
        counts = []
        for equal, other in self.request("POST", "/collective_rpc", json=body)["results"]:
            if other is not None:
                raise VllmError(f"vLLM does not hold {other} as it is in {folder}")
            counts.append(equal)
        return min(counts)

    def logprobs(self, model: str, token_ids: list[int] = CHECK_TOKENS) -> list[float]:
        """Return the logprobs (nats) of `token_ids` from the second on. Equal weights give equal numbers.

        One token more is sampled. Raises VllmError where the logprobs are not finite.
        """
        body = {"model": model, "prompt": token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        reply = self.request("POST", "/v1/completions", json=body)
        prompt_logprobs = reply["choices"][0]["prompt_logprobs"][1:]
        found = [entry[str(i)]["logprob"] for i, entry in zip(token_ids[1:], prompt_logprobs, strict=True)]
        if not all(value is not None and math.isfinite(value) for value in found):
            raise VllmError(f"model {model!r} answers the check prompt with logprobs {found}; its weights are broken")
        return found
