-- What the other agents of a rollout had said when an agent's step began, as one number: equal if they had said the same.
-- Grain: one row per row of `returns` that acted. `others` is NULL if it is not known.
-- Inputs: call_returns, policy_calls, spans.
-- Rule: the outputs of all calls, of any model, that other agents began before the step began; by agent, in their order. Later calls do not count:
-- they may have been made because of this step, and a baseline from their outputs would take away its effect. Outputs are the same if their
-- texts and tool calls are; without texts, if their token ids are. A failed call said nothing, and a judge (`reward_operation`) is no agent of
-- the task. `others` is not known in these cases: the agent of an earlier call is not known (it may be the agent's own); nothing was recorded
-- of a call; a call has no time, so it may have been earlier.
-- It is a sum of hashes, each with agent and place: that of all earlier calls less that of the agent's own, in one pass.
WITH calls AS (
    SELECT call_id, rollout_id, attempt_id, span_id, response_id, start_ns, coalesce(agent, '') AS agent
    FROM policy_calls
    WHERE left_out IS NULL OR left_out NOT IN ('failed_call', 'reward_operation')
),
messages AS (
    SELECT
        calls.call_id,
        spans.output_messages AS text,
        messages_of(spans.output_messages) AS messages,
        spans.response_ids
    FROM calls
    JOIN spans
        ON spans.rollout_id = calls.rollout_id
        AND spans.attempt_id = calls.attempt_id
        AND spans.span_id = calls.span_id
        AND spans.start_ns IS NOT DISTINCT FROM calls.start_ns
        AND spans.response_id IS NOT DISTINCT FROM calls.response_id
        AND spans.op = 'llm'
),
outputs AS (
    SELECT
        call_id,
        min(CASE
            WHEN len(list_filter(messages, lambda m: m.content IS NOT NULL OR m.tool_calls IS NOT NULL)) = len(messages)
                THEN hash([message_hash(m, 'assistant') FOR m IN messages])
            WHEN text IS NOT NULL THEN hash(text)
            WHEN response_ids IS NOT NULL THEN hash(response_ids)
        END) AS said
    FROM messages
    GROUP BY call_id
),
said AS (
    SELECT
        calls.*,
        hash(agent, row_number() OVER (PARTITION BY rollout_id, attempt_id, agent ORDER BY start_ns, call_id), said)::HUGEINT AS said,
        coalesce(start_ns, 0) AS began_ns,
        (agent = '' OR said IS NULL OR start_ns IS NULL)::INTEGER AS unknown
    FROM calls
    LEFT JOIN outputs USING (call_id)
),
earlier AS (
    SELECT
        call_id,
        start_ns,
        coalesce(sum(said) OVER all_before, 0) - coalesce(sum(said) OVER own_before, 0) AS others,
        coalesce(sum(unknown) OVER all_before, 0) - coalesce(sum(unknown) OVER own_before, 0) AS unknown
    FROM said
    WINDOW
        all_before AS (PARTITION BY rollout_id, attempt_id ORDER BY began_ns RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        own_before AS (PARTITION BY rollout_id, attempt_id, agent ORDER BY began_ns RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT
    policy,
    rollout_id,
    attempt_id,
    agent,
    step,
    min(others) FILTER (unknown = 0 AND agent <> '' AND start_ns IS NOT NULL) AS others
FROM call_returns
LEFT JOIN earlier USING (call_id)
WHERE left_out IS NULL
GROUP BY ALL
