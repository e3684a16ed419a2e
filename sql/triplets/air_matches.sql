-- The rewards that rules of automatic intermediate rewarding (AIR) give, for example -0.1 for a failing tool call.
-- Grain: one row per (rule, span) that gets a reward.
-- Inputs: air_candidates (of the rule: name, value, attribute, column_name, found_in, pattern, per, cap, before_limit), spans.
-- Rule: a span matches if every condition of the rule holds. An LLM or tool call that was recorded twice counts once, if any of its records
-- matches. With `before_limit` an LLM call gets a share of the value: 0 up to that many tokens before its limit, 1 at the limit, growing evenly
-- between (Yu et al. 2025, DAPO, arXiv:2503.14476, eq. 13). `per: rollout` gives the value for the first match only; `cap` limits the sum that
-- a rule gives an attempt, in absolute value.
WITH
-- Three times from `spans`, so that texts and the map of attributes are read only where a rule asks for them.
found AS (
    SELECT
        air_candidates.node,
        air_candidates.name,
        air_candidates.pattern,
        CASE air_candidates.column_name
            WHEN 'name' THEN spans.name
            WHEN 'kind' THEN spans.kind
            WHEN 'trace_state' THEN spans.trace_state
            WHEN 'instrumentation' THEN spans.instrumentation
            WHEN 'status_message' THEN spans.status_message
            WHEN 'error' THEN spans.error
            WHEN 'outcome' THEN spans.outcome
            WHEN 'conversation_id' THEN spans.conversation_id
            WHEN 'agent_name' THEN spans.agent_name
            WHEN 'agent_id' THEN spans.agent_id
            WHEN 'operation' THEN spans.operation
            WHEN 'span_role' THEN spans.span_role
            WHEN 'policy' THEN spans.policy
            WHEN 'policy_version' THEN spans.policy_version
            WHEN 'provider' THEN spans.provider
            WHEN 'model' THEN spans.model
            WHEN 'response_id' THEN spans.response_id
            WHEN 'finish_reasons' THEN spans.finish_reasons
            WHEN 'untrainable' THEN spans.untrainable
            WHEN 'input_tokens' THEN spans.input_tokens::VARCHAR
            WHEN 'output_tokens' THEN spans.output_tokens::VARCHAR
            WHEN 'cached_tokens' THEN spans.cached_tokens::VARCHAR
            WHEN 'reasoning_tokens' THEN spans.reasoning_tokens::VARCHAR
            WHEN 'first_token_ms' THEN spans.first_token_ms::VARCHAR
            WHEN 'sampling' THEN spans.sampling
            WHEN 'requested_sampling' THEN spans.requested_sampling
            WHEN 'request_temperature' THEN spans.request_temperature::VARCHAR
            WHEN 'request_top_p' THEN spans.request_top_p::VARCHAR
            WHEN 'request_top_k' THEN spans.request_top_k::VARCHAR
            WHEN 'request_max_tokens' THEN spans.request_max_tokens::VARCHAR
            WHEN 'request_seed' THEN spans.request_seed::VARCHAR
            WHEN 'request_choices' THEN spans.request_choices::VARCHAR
            WHEN 'request_frequency_penalty' THEN spans.request_frequency_penalty::VARCHAR
            WHEN 'request_presence_penalty' THEN spans.request_presence_penalty::VARCHAR
            WHEN 'request_stop' THEN spans.request_stop
            WHEN 'tool_name' THEN spans.tool_name
            WHEN 'tool_call_id' THEN spans.tool_call_id
            WHEN 'reward' THEN spans.reward::VARCHAR
            WHEN 'reward_name' THEN spans.reward_name
            WHEN 'reward_source' THEN spans.reward_source
            WHEN 'task_id' THEN spans.task_id
            WHEN 'group_id' THEN spans.group_id
            WHEN 'prompts' THEN spans.prompts
            WHEN 'mode' THEN spans.mode
            WHEN 'run' THEN spans.run
            WHEN 'epoch' THEN spans.epoch::VARCHAR
            WHEN 'declared_rollout_id' THEN spans.declared_rollout_id
            WHEN 'declared_attempt_id' THEN spans.declared_attempt_id
        END AS text
    FROM air_candidates
    JOIN spans USING (record_offset, record_index)
    WHERE air_candidates.found_in = 'column'
    UNION ALL
    SELECT
        air_candidates.node,
        air_candidates.name,
        air_candidates.pattern,
        CASE air_candidates.column_name
            WHEN 'input_messages' THEN spans.input_messages
            WHEN 'output_messages' THEN spans.output_messages
            WHEN 'tool_arguments' THEN spans.tool_arguments
            WHEN 'tool_result' THEN spans.tool_result
            WHEN 'task' THEN spans.task
            WHEN 'output' THEN spans.output
            WHEN 'events' THEN spans.events
            WHEN 'links' THEN spans.links
        END
    FROM air_candidates
    JOIN spans USING (record_offset, record_index)
    WHERE air_candidates.found_in = 'text'
    UNION ALL
    SELECT air_candidates.node, air_candidates.name, air_candidates.pattern, spans.attributes[air_candidates.attribute]
    FROM air_candidates
    JOIN spans USING (record_offset, record_index)
    WHERE air_candidates.found_in = 'attributes'
),
matches AS (
    SELECT air_candidates.* FROM air_candidates WHERE attribute IS NULL AND pattern IS NULL
    UNION ALL
    SELECT air_candidates.*
    FROM air_candidates
    JOIN found USING (node, name)
    WHERE found.text IS NOT NULL AND CASE WHEN found.pattern IS NULL THEN true ELSE regexp_matches(found.text, found.pattern) END
),
shared AS (
    SELECT * FROM matches WHERE before_limit IS NULL
    UNION ALL
    SELECT matches.* REPLACE (value * least((tokens - (token_limit - before_limit)) / before_limit, 1) AS value)
    FROM matches
    JOIN (
        SELECT
            record_offset,
            record_index,
            coalesce(list_max(choice_lengths), response_id_count, output_tokens) AS tokens,
            -- The limit in force; what an agent's own instrumentation saw is what it asked for.
            coalesce(
                TRY_CAST(sampling ->> '$.max_tokens' AS BIGINT),
                TRY_CAST(sampling ->> '$.max_completion_tokens' AS BIGINT),
                request_max_tokens
            ) AS token_limit
        FROM spans
        SEMI JOIN matches USING (record_offset, record_index)
    ) AS lengths USING (record_offset, record_index)
    WHERE before_limit IS NOT NULL AND tokens > token_limit - before_limit
),
once AS (
    SELECT * FROM shared QUALIFY row_number() OVER (PARTITION BY name, call ORDER BY emitted_ns, node) = 1
),
counted AS (
    -- `before`: what the rule has given by then, in absolute value, were there no cap. n equal values are n times the value.
    SELECT
        *,
        row_number() OVER earlier AS place,
        CASE
            WHEN before_limit IS NULL THEN (row_number() OVER earlier - 1) * abs(value)
            ELSE sum(abs(value)) OVER earlier - abs(value)
        END AS before,
        CASE WHEN before_limit IS NULL THEN row_number() OVER earlier * abs(value) ELSE sum(abs(value)) OVER earlier END AS until
    FROM once
    WINDOW earlier AS (PARTITION BY rollout_id, attempt_id, name ORDER BY emitted_ns, call ROWS UNBOUNDED PRECEDING)
)
SELECT
    rollout_id,
    attempt_id,
    call AS node,
    name,
    CASE WHEN cap IS NULL THEN value ELSE sign(value) * (least(until, cap) - least(before, cap)) END AS given,
    emitted_ns
FROM counted
WHERE (per = 'match' OR place = 1) AND (cap IS NULL OR before < cap)
ORDER BY node, name
