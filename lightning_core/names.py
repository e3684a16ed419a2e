"""Names of the span attributes that this project writes, and of the environment an attempt is given.

Names that others write (`gen_ai.*`, OpenInference, Traceloop, …) are rows of `sql/ingest/attribute_aliases.sql`.
"""

# Scope: which execution a span belongs to. As resource attributes, or written by the gateway that authenticated it.
ROLLOUT_ID = "lightning.rollout_id"
ATTEMPT_ID = "lightning.attempt_id"
PROOF = "lightning.proof"  # resource attribute, for exporters that send no token: see otlp/proof.py; it is not stored

IMPORTED = "lightning.imported"  # resource attribute: what `lightning-flows import` read it from (`chat`, …)

# The two spans every execution leaves: `rollout.start` when it begins, the root `rollout` after its process has exited.
SPAN_ROLLOUT_START = "rollout.start"
SPAN_ROLLOUT = "rollout"
RUN = "lightning.run"
EPOCH = "lightning.epoch"  # int
MODE = "lightning.mode"  # "train" | "evaluate"
TASK_ID = "lightning.task_id"
GROUP_ID = "lightning.group_id"
PROMPTS = "lightning.prompts"  # JSON: prompt → version that the rollout is served
TASK = "lightning.task"  # the task as JSON
OUTPUT = "lightning.output"  # what the agent returned or printed last, as JSON
OUTPUT_NOTE = "lightning.output_note"  # how `lightning.output` differs from what the agent gave, where it does
STATUS = "lightning.status"  # one of STATUSES
ERROR = "lightning.error"  # what went wrong, for people

# `ok`: ran to its end. `error`, `timeout`: the agent's own failure, final. `infrastructure`: ours, retried.
STATUSES = ("ok", "error", "timeout", "infrastructure")

# The two spans of a rollout that an agent elsewhere has opened at the gateway, which writes them: lightning_core/gateway/opened.py.
SPAN_ROLLOUT_OPENED = "rollout.opened"  # with TASK, TASK_ID, GROUP_ID where they were given
SPAN_ROLLOUT_ENDED = "rollout.ended"  # with OUTPUT, STATUS, ERROR; of several the first counts
OPENER = "lightning.opener"  # who opened it: the id of an opener key, or "secret"

# One LLM call, written by the gateway as a span named `chat <policy>`.
SPAN_CALL_PREFIX = "chat "
POLICY = "lightning.policy"
POLICY_VERSION = "lightning.policy_version"  # "v0003"; "v0003,v0004" where a call ran through a swap
PROMPT_TOKEN_IDS = "lightning.prompt_token_ids"  # bytes_value: little-endian int32
RESPONSE_TOKEN_IDS = "lightning.response_token_ids"  # bytes_value: little-endian int32, all choices one after another
RESPONSE_LOGPROBS = "lightning.response_logprobs"  # bytes_value: little-endian float32, aligned with the response ids
CHOICE_LENGTHS = "lightning.choice_lengths"  # bytes_value: little-endian int32, response tokens of each choice
SAMPLING = "lightning.sampling"  # JSON: the sampling parameters that were used
REQUESTED_SAMPLING = "lightning.requested_sampling"  # JSON: those the agent asked for
UNTRAINABLE = "lightning.untrainable"  # why a call cannot be trained on: "greedy", "guided", "aborted", …
ERROR_TYPE = "error.type"  # OpenAI's code of a refusal
FIRST_TOKEN_MS = "lightning.first_token_ms"  # latency to the first token
API = "lightning.api"  # "chat" | "completions" | "responses" | "embeddings": which the client used
UPSTREAM = "lightning.upstream"  # the configured upstream that answered, for a model that is not trained
UPSTREAM_ID = "lightning.upstream_id"  # the reply's id upstream, where the client was given another
UPSTREAM_REQUEST_ID = "lightning.upstream_request_id"  # of the upstream's answer, where it names one
GEN_AI_OPERATION = "gen_ai.operation.name"  # "chat"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"  # JSON, as the client sent them
PROMPTS_SERVED = (
    "lightning.prompts_served"  # JSON: where the model got another message than was sent: its number, content, prompts
)
PROMPTS_FOUND = "lightning.prompts_found"  # JSON list: those that it got, of its rollout's
GEN_AI_TOOLS = "gen_ai.tool.definitions"  # JSON, likewise
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"  # JSON list, one message a choice

# A reward is a span of its own.
SPAN_REWARD = "reward"
REWARD = "lightning.reward"  # float
REWARD_NAME = "lightning.reward.name"
REWARD_SOURCE = "lightning.reward.source"  # "agent" | "grader"
REWARD_WORDS = "lightning.reward.words"  # why, for people and for a model that reflects
REWARD_GRADER = "lightning.reward.grader"  # digest of the grader's code: another grader grades again

# What an agent records beside rewards: spans of no length.
SPAN_MESSAGE, SPAN_OBJECT, SPAN_EXCEPTION = "message", "object", "exception"
MESSAGE = "lightning.message"  # a text
OBJECT = "lightning.object"  # JSON

# Where an agent elsewhere finds the gateway: lightning_core/client/opened.py.
ENV_GATEWAY_URL = "LIGHTNING_GATEWAY_URL"
ENV_GATEWAY_KEY = "LIGHTNING_GATEWAY_KEY"  # an opener key

# The environment of an attempt.
ENV_TASK = "LIGHTNING_TASK"  # path of a JSON file that holds the task
ENV_PROMPTS = "LIGHTNING_PROMPTS"  # path of a JSON file with the prompts: `{"writer": {"version": "p0001", "text": …}}`
ENV_ROLLOUT_ID = "LIGHTNING_ROLLOUT_ID"
ENV_ATTEMPT_ID = "LIGHTNING_ATTEMPT_ID"
ENV_MODEL = "LIGHTNING_MODEL"  # the first policy's name, for agents that read their model from the environment
