"""What of an agent's request goes to vLLM, and whether the call can be trained on.

In training the policy's sampling replaces the agent's, with every truncation and penalty written out as neutral:
vLLM fills what a request leaves open from the model's generation_config (top-k 20, say), and the trainer's softmax
knows nothing of that. `strict` tools lose the flag, since vLLM would guide the decoding by their schema. In
evaluation the agent's sampling stays. Either way vLLM is asked for token ids and
logprobs, and the reply is cleaned of them afterwards (`reply.py`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lightning_core.gateway.attempt_tokens import Mode
from lightning_core.gateway.http import HttpError
from lightning_core.gateway.routes import Route

Kind = Literal["chat", "completions", "embeddings"]  # the API that the upstream is asked by

# What counts as sampling, for the record of what was asked and used.
SAMPLING_KEYS = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("logit_bias", "bad_words", "allowed_token_ids", "min_tokens", "max_tokens", "max_completion_tokens", "seed"),
    *("stop", "stop_token_ids", "ignore_eos", "n", "best_of", "use_beam_search", "length_penalty", "watermarking"),
    *("thinking_token_budget", "vllm_xargs"),
)
# In training: those that bend the distribution, and `seed`, which would make the rollouts of a group alike.
_DROPPED_IN_TRAINING = (
    *("logit_bias", "bad_words", "allowed_token_ids", "min_tokens", "seed", "best_of", "use_beam_search"),
    *("length_penalty", "watermarking", "thinking_token_budget", "vllm_xargs"),
)
_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
# Never for an agent: they reach into how vLLM runs, or let it choose the response id that the repair joins by.
_NEVER = ("kv_transfer_params", "ec_transfer_params", "request_id", "priority", "cache_salt")
_GUIDED = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_INTEGER = TypeAdapter(int)  # what vLLM takes for one: 20.0 and "20" too
_MOST_CHOICES = 128  # as at OpenAI; vLLM would begin 16,384 sequences for one request
_GREEDY_BELOW = 1e-5  # vLLM takes smaller temperatures as zero


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it goes to vLLM, and what has to be known to answer the client."""

    body: dict[str, Any]
    kind: Kind
    stream: bool
    choices: int  # how many the reply will have
    requested: dict[str, Any]
    used: dict[str, Any]
    untrainable: str | None
    wants_logprobs: bool
    wants_token_ids: bool
    wants_usage: bool  # of a stream
    hides_reasoning: bool = False  # the client asked for none; vLLM was asked for it, as it hides the ids with it


def check_choices(request: dict[str, Any]) -> None:
    """Raise HttpError 400 where a request asks for more choices than one may have."""
    if (n := _choices(request)) > _MOST_CHOICES:
        raise HttpError(400, f"`n` is {n}; a request may have at most {_MOST_CHOICES} choices", param="n")


def prepare(request: dict[str, Any], kind: Kind, route: Route | None, mode: Mode, model: str) -> Prepared:
    """Rewrite a request of the OpenAI API for the policy's vLLM, which serves it as `model`.

    Where there is no route the upstream is not ours, and gets it as it is, but for what it may never have; usage of a
    stream is always asked for.
    """
    body = {key: value for key, value in request.items() if key not in _NEVER} | {"model": model}
    if route is None:  # whatever comes was asked for
        facts = {"untrainable": "other_model", "wants_logprobs": True, "wants_token_ids": True}
        return _prepared(request, body, kind, **facts)
    if mode == "train":
        for key in _DROPPED_IN_TRAINING:
            body.pop(key, None)
        body |= {"temperature": route.sampling.temperature, "top_p": route.sampling.top_p, **_NEUTRAL}
        if isinstance(body.get("tools"), list):
            body["tools"] = [_without_strict(tool) for tool in body["tools"]]
    limit = route.sampling.max_tokens if mode == "train" else route.evaluate_max_tokens
    _limit_tokens(body, kind, limit)
    if kind == "chat":
        body["logprobs"] = True
    elif request.get("logprobs") is None:
        body["logprobs"] = 0  # the sampled token's only
    # With ids vLLM leaves the echoed prompt out of the text, which the client would notice.
    if not (kind == "completions" and request.get("echo")):
        body["return_token_ids"] = True
    untrainable = _untrainable(request, body, kind)
    hides_reasoning = _hides_reasoning(request, kind, untrainable)
    if hides_reasoning:
        body["include_reasoning"] = True
    return _prepared(
        request,
        body,
        kind,
        untrainable=untrainable,
        wants_logprobs=_wants_logprobs(request, kind),
        wants_token_ids=bool(request.get("return_token_ids")),
        hides_reasoning=hides_reasoning,
    )


def _prepared(request: dict[str, Any], body: dict[str, Any], kind: Kind, **facts: Any) -> Prepared:
    stream = bool(request.get("stream")) and kind != "embeddings"
    options = request.get("stream_options")
    options = options if isinstance(options, dict) else {}
    if stream:
        body["stream_options"] = options | {"include_usage": True}
    return Prepared(
        body=body,
        kind=kind,
        stream=stream,
        choices=_choices_in_all(request, kind),
        requested=_sampling(request),
        used=_sampling(body),
        wants_usage=bool(options.get("include_usage")),
        **facts,
    )


def _sampling(body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in SAMPLING_KEYS if body.get(key) is not None}


def _choices(request: dict[str, Any]) -> int:
    """Return how many choices a prompt has; 1 also for what is no number, which vLLM refuses."""
    try:
        return max(1, int(request.get("n", 1)))
    except (TypeError, ValueError, OverflowError):
        return 1


def _choices_in_all(request: dict[str, Any], kind: Kind) -> int:
    """Return how many choices a reply has; a completion may have several prompts."""
    prompts = len(request["prompt"]) if kind == "completions" and _is_batch(request.get("prompt")) else 1
    return _choices(request) * prompts


def _limit_tokens(body: dict[str, Any], kind: Kind, limit: int | None) -> None:
    """Lower the agent's limit to ours, never raise it."""
    if limit is None:
        return
    given = False
    for key in ("max_tokens", "max_completion_tokens"):
        if (asked := body.get(key)) is None:
            continue
        given = True
        with contextlib.suppress(ValidationError):  # vLLM answers it with 400
            body[key] = min(_INTEGER.validate_python(asked), limit)
    if not given:
        # Where none is given, a completion ends after 16 tokens; a chat at the end of the context.
        body["max_tokens"] = limit if kind == "chat" else min(16, limit)


def _wants_logprobs(request: dict[str, Any], kind: Kind) -> bool:
    if kind == "chat":
        return bool(request.get("logprobs"))
    return request.get("logprobs") is not None and request.get("logprobs") is not False


def _hides_reasoning(request: dict[str, Any], kind: Kind, untrainable: str | None) -> bool:
    """Return whether the reasoning is to be taken off here.

    Not where a grammar is in force, since vLLM would apply it from another token on; nor where the client asks for ids
    or logprobs, since whether vLLM would hide them depends on its parsers. Such a call lacks ids and says so.
    """
    if kind != "chat" or request.get("include_reasoning") is not False:
        return False
    asks = _wants_logprobs(request, kind) or bool(request.get("return_token_ids"))
    return not asks and untrainable not in ("guided", "forced_tool")


def _is_batch(prompt: Any) -> bool:
    """Return whether it is a list of prompts; a list of ints is one prompt."""
    return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)


def _untrainable(request: dict[str, Any], body: dict[str, Any], kind: Kind) -> str | None:
    """Return why the tokens will not be a plain sample of the policy; None where they will."""
    response_format = request.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type", "text") != "text":
        return "guided"
    if any(request.get(key) is not None for key in _GUIDED):
        return "guided"
    tools = body.get("tools")
    if isinstance(tools, list) and tools and request.get("tool_choice") != "none":
        # vLLM holds these to a grammar where it has a tool parser.
        strict = any(_is_strict(tool) for tool in tools)
        if strict or request.get("parallel_tool_calls") is False:
            return "guided"
    if request.get("tool_choice") not in (None, "none", "auto"):
        return "forced_tool"
    if request.get("continue_final_message"):
        return "prefilled"
    if body.get("use_beam_search"):
        return "beam_search"
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and temperature < _GREEDY_BELOW:
        return "greedy"
    if kind == "completions" and _is_batch(request.get("prompt")) and len(request["prompt"]) > 1:
        return "several_prompts"
    return None


def _is_strict(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and bool(function.get("strict"))


def _without_strict(tool: Any) -> Any:
    if not _is_strict(tool):
        return tool
    return tool | {"function": {key: value for key, value in tool["function"].items() if key != "strict"}}
