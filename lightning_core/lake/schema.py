"""The columns of `spans`, declared once: the Arrow schema, the empty table and the data dictionary derive from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import pyarrow as pa

_MAP = pa.map_(pa.string(), pa.string())
_TYPES: dict[str, pa.DataType] = {
    "VARCHAR": pa.string(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "FLOAT": pa.float32(),
    "INTEGER[]": pa.list_(pa.int32()),
    "FLOAT[]": pa.list_(pa.float32()),
    "MAP(VARCHAR, VARCHAR)": _MAP,
}


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    meaning: str

    @property
    def arrow(self) -> pa.DataType:
        return _TYPES[self.type]


# What the decoder fills without looking at an attribute.
_ENVELOPE = (
    Column("trace_id", "VARCHAR", "trace id, 32 hex digits as sent"),
    Column("span_id", "VARCHAR", "span id, 16 hex digits as sent"),
    Column("parent_span_id", "VARCHAR", "declared parent; NULL where none was sent"),
    Column("name", "VARCHAR", "span name"),
    Column("kind", "VARCHAR", "internal, server, client, producer, consumer or unspecified"),
    Column("start_ns", "BIGINT", "start, ns since 1970; NULL where none was sent"),
    Column("end_ns", "BIGINT", "end, ns since 1970; NULL where none was sent"),
    Column("status", "VARCHAR", "unset, ok or error"),
    Column("status_message", "VARCHAR", "text of the status"),
    Column("trace_state", "VARCHAR", "W3C trace state"),
    Column("flags", "BIGINT", "W3C trace flags and OTLP's own; NULL for 0"),
    Column("dropped_attributes", "BIGINT", "attributes that the sender dropped; NULL for 0"),
    Column("dropped_events", "BIGINT", "events that the sender dropped; NULL for 0"),
    Column("dropped_links", "BIGINT", "links that the sender dropped; NULL for 0"),
)
_REST = (
    Column("attributes", "MAP(VARCHAR, VARCHAR)", "every attribute that is no column; structures as JSON"),
    Column("resource", "MAP(VARCHAR, VARCHAR)", "resource attributes"),
    Column("instrumentation", "VARCHAR", "instrumentation scope: `name@version`"),
    Column("events", "VARCHAR", "JSON list of {time_ns, name, attributes}; NULL where there are none"),
    Column("links", "VARCHAR", "JSON list of {trace_id, span_id, attributes}; NULL where there are none"),
    Column("received_ns", "BIGINT", "when the gateway took the request, ns since 1970"),
    Column("record_offset", "BIGINT", "offset of the request in the spool"),
    Column("record_index", "INTEGER", "position of the span in its request; with the offset it names the row"),
    Column(
        "content_hash",
        "BIGINT",
        "hash of all that was sent of the span: distinguishes a retry from another span with its id",
    ),
)
# What `attribute_aliases` fills, by column name.
_PROMOTED = (
    Column("run", "VARCHAR", "run (on `rollout` and `rollout.start`)"),
    Column("epoch", "BIGINT", "epoch (on `rollout` and `rollout.start`)"),
    Column("mode", "VARCHAR", "train or evaluate (on `rollout` and `rollout.start`)"),
    Column(
        "group_id", "VARCHAR", "rollouts of one task in one epoch (on `rollout`, `rollout.start`, `rollout.opened`)"
    ),
    Column("task_id", "VARCHAR", "task (on `rollout`, `rollout.start`, `rollout.opened`)"),
    Column(
        "prompts", "VARCHAR", "prompt → version that the rollout is served, as JSON (on `rollout` and `rollout.start`)"
    ),
    Column("task", "VARCHAR", "the task as JSON (on `rollout` and `rollout.opened`)"),
    Column("output", "VARCHAR", "what the agent returned, as JSON (on `rollout` and `rollout.ended`)"),
    Column("outcome", "VARCHAR", "ok, error, timeout or infrastructure (on `rollout` and `rollout.ended`)"),
    Column("error", "VARCHAR", "what went wrong, for people"),
    Column("conversation_id", "VARCHAR", "conversation, session or thread that the span belongs to"),
    Column("agent_id", "VARCHAR", "id of the agent, where its framework has one"),
    Column("policy", "VARCHAR", "policy that sampled this call (on calls through the gateway)"),
    Column("policy_version", "VARCHAR", "its version; several, comma-separated, where a call ran through a swap"),
    Column("provider", "VARCHAR", "who serves the model, as the instrumentation says"),
    Column("model", "VARCHAR", "model name of an LLM call"),
    Column("response_id", "VARCHAR", "id of the LLM's response"),
    Column("finish_reasons", "VARCHAR", "JSON list, one a choice"),
    Column("input_tokens", "BIGINT", "tokens of the prompt"),
    Column("output_tokens", "BIGINT", "tokens of all choices"),
    Column("cached_tokens", "BIGINT", "tokens of the prompt that came from a cache"),
    Column("reasoning_tokens", "BIGINT", "tokens of the choices that are reasoning"),
    Column("input_messages", "VARCHAR", "messages of the request, as JSON"),
    Column("output_messages", "VARCHAR", "messages of the reply, as JSON"),
    Column("sampling", "VARCHAR", "sampling parameters in force, as JSON"),
    Column("requested_sampling", "VARCHAR", "sampling parameters the agent asked for, as JSON"),
    Column("request_temperature", "DOUBLE", "temperature that the agent asked for, as its own instrumentation saw it"),
    Column("request_top_p", "DOUBLE", "likewise top-p"),
    Column("request_top_k", "DOUBLE", "likewise top-k"),
    Column("request_max_tokens", "BIGINT", "likewise the limit on tokens"),
    Column("request_seed", "BIGINT", "likewise the seed"),
    Column("request_choices", "BIGINT", "likewise the number of choices (`n`)"),
    Column("request_frequency_penalty", "DOUBLE", "likewise the frequency penalty"),
    Column("request_presence_penalty", "DOUBLE", "likewise the presence penalty"),
    Column("request_stop", "VARCHAR", "likewise the stop sequences, as JSON"),
    Column("untrainable", "VARCHAR", "why a call cannot be trained on"),
    Column("first_token_ms", "DOUBLE", "milliseconds to the first token"),
    Column("prompt_ids", "INTEGER[]", "token ids of the prompt"),
    Column("response_ids", "INTEGER[]", "sampled token ids, all choices one after another"),
    Column("choice_lengths", "INTEGER[]", "tokens of each choice, where there are several"),
    Column("response_logprobs", "FLOAT[]", "logprob of each sampled token under the distribution sampled from"),
    Column("tool_name", "VARCHAR", "tool"),
    Column("tool_call_id", "VARCHAR", "id of the tool call"),
    Column("tool_arguments", "VARCHAR", "arguments of the tool call"),
    Column("tool_result", "VARCHAR", "result of the tool call"),
    Column("reward", "DOUBLE", "reward that this span emits"),
    Column("reward_name", "VARCHAR", "its name; `reward` if the span gives none"),
    Column(
        "reward_source",
        "VARCHAR",
        "agent or grader; `refused` where an attempt poses as a grader; NULL where it does not say",
    ),
)
# What the span says of itself and the columns above may overrule.
_DECLARED = (
    Column(
        "sender",
        "VARCHAR",
        "who sent it: gateway, secret (who holds the gateway's), attempt, nobody; NULL: not written down",
    ),
    Column(
        "refused", "VARCHAR", "attribute of it that its sender may not write, so that what it claims counts for nothing"
    ),
    Column("declared_rollout_id", "VARCHAR", "rollout the span itself claims"),
    Column("declared_attempt_id", "VARCHAR", "attempt the span itself claims"),
    Column("operation", "VARCHAR", "operation name as sent (`op` is what was made of it)"),
    Column("span_role", "VARCHAR", "kind of the span as its instrumentation calls it"),
)
SPANS: tuple[Column, ...] = (
    Column("rollout_id", "VARCHAR", "rollout; NULL for spans that came without a scope"),
    Column("attempt_id", "VARCHAR", "execution of the rollout"),
    Column("scope", "VARCHAR", "where the two came from: path, token, proof, resource, span or none"),
    *_ENVELOPE[:5],
    Column(
        "op",
        "VARCHAR",
        "llm, tool, agent, reward, rollout, rollout.start, rollout.opened, rollout.ended, embedding, …, other",
    ),
    *_ENVELOPE[5:],
    Column("agent_name", "VARCHAR", "agent that this span itself names"),
    Column("agent_name_source", "VARCHAR", "attribute the name was read from, or `span name`"),
    *_PROMOTED,
    Column("prompt_id_count", "INTEGER", "length of `prompt_ids`, to be had without reading them"),
    Column("response_id_count", "INTEGER", "length of `response_ids`"),
    Column("logprob_count", "INTEGER", "length of `response_logprobs`"),
    Column("lowest_token_id", "INTEGER", "least of `prompt_ids` and `response_ids`; NULL without any"),
    Column("highest_token_id", "INTEGER", "greatest of them"),
    Column("lowest_logprob", "FLOAT", "least of `response_logprobs`; NULL without any, NaN where one is"),
    Column("highest_logprob", "FLOAT", "greatest of them, likewise"),
    *_DECLARED,
    *_REST,
)
# What the decoder reads from the wire, and sql/ingest/spans.sql makes of it.
DECODED: tuple[Column, ...] = (
    Column("row", "INTEGER", "number of the span in the batch"),
    Column("scoped_rollout_id", "VARCHAR", "rollout the gateway authenticated"),
    Column("scoped_attempt_id", "VARCHAR", "attempt the gateway authenticated"),
    Column("scope", "VARCHAR", "path, token or none"),
    Column("agent_name", "VARCHAR", "agent that this span names"),
    Column("agent_name_source", "VARCHAR", "attribute it was read from"),
    *_ENVELOPE,
    *_PROMOTED,
    *_DECLARED,
    *_REST,
)


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    return pa.schema([(c.name, c.arrow) for c in columns])


@cache
def columns_digest() -> str:
    """Return the digest of the columns of `spans`: files of another one were written by another version."""
    return hashlib.sha256(repr([(c.name, c.type) for c in SPANS]).encode()).hexdigest()[:12]


def data_dictionary() -> str:
    """Return the columns of `spans` as a Markdown table."""
    rows = "\n".join(f"| `{c.name}` | `{c.type}` | {c.meaning} |" for c in SPANS)
    return f"| column | type | meaning |\n|---|---|---|\n{rows}\n"
