-- The messages of calls whose tokens continue no earlier call: is the text different, or only its tokens?
-- Grain: one row per call of an attempt in which a call that is not the first continues none.
-- `prompt`: hash of the prompt. `opening`: hash of the leading system messages and the first other one. `said`: hash of all messages up to the
-- last reply among them. `replies`: for each choice, hash of all messages and the reply to them.
-- Inputs: triplet_ends, followed_calls, call_rows, spans, tokenized_calls.
-- Rule: messages are the same if role, content, and the names and arguments of their tool calls are. If no messages were recorded, the first
-- 64 tokens of the prompt are the opening.
WITH calls AS (
    SELECT DISTINCT call_id, rollout_id, attempt_id, policy FROM triplet_ends WHERE merge = 'prefix'
),
asked AS (
    SELECT rollout_id, attempt_id, policy
    FROM calls
    ANTI JOIN followed_calls USING (call_id)
    GROUP BY ALL
    HAVING count(*) > 1
),
texts AS (
    SELECT
        calls.call_id,
        calls.rollout_id,
        calls.attempt_id,
        calls.policy,
        hash(coalesce(spans.prompt_ids, tokenized.prompt_ids)) AS prompt,
        hash(coalesce(spans.prompt_ids, tokenized.prompt_ids)[1:64]) AS beginning,
        messages_of(spans.input_messages) AS asked,
        messages_of(spans.output_messages) AS answered
    FROM calls
    SEMI JOIN asked USING (rollout_id, attempt_id, policy)
    JOIN call_rows USING (call_id)
    JOIN spans USING (record_offset, record_index)
    LEFT JOIN tokenized_calls AS tokenized USING (record_offset, record_index)
),
hashed AS (
    SELECT
        call_id,
        rollout_id,
        attempt_id,
        policy,
        prompt,
        beginning,
        [m.role FOR m IN asked] AS roles,
        [message_hash(m, m.role) FOR m IN asked] AS asked,
        [message_hash(m, 'assistant') FOR m IN answered] AS answered
    FROM texts
),
marked AS (
    SELECT
        *,
        -- the first message that is neither a system's nor a developer's, and the last reply
        first_other(roles) AS first_said,
        last_reply(roles) AS last_reply
    FROM hashed
)
SELECT
    call_id,
    rollout_id,
    attempt_id,
    policy,
    prompt,
    CASE WHEN len(asked) > 0 THEN hash(asked[1:coalesce(first_said, len(asked))]) ELSE beginning END AS opening,
    CASE WHEN last_reply IS NOT NULL THEN hash(asked[1:last_reply]) END AS said,
    CASE WHEN len(asked) > 0 THEN list_transform(range(len(answered)), lambda i: hash(list_append(asked, answered[i + 1]))) END AS replies
FROM marked
ORDER BY call_id
