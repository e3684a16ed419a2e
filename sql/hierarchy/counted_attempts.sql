-- The attempts that count, numbered: a bucket is a range of `attempt`.
-- Grain: one row per attempt that counts. `weight` is its share of a bucket, from its spans and its tokens. Its spans have the numbers
-- (`node`) after `first_node`.
-- Inputs: scored_attempts, spans.
-- Rule: numbered in order of rollout and attempt, so that no result depends on the number of buckets.
WITH sizes AS (
    SELECT
        rollout_id,
        attempt_id,
        count(*) FILTER (WHERE op NOT IN ('rollout.start', 'rollout.opened', 'rollout.ended')) AS spans,
        -- 250 tokens of a call (ids, logprobs) fill the memory of about one span.
        -- What an agent says of a call's tokens can be any number.
        sum(least(greatest(coalesce(input_tokens, 0), 0), 10_000_000) + least(greatest(coalesce(output_tokens, 0), 0), 10_000_000)) // 250 AS tokens
    FROM spans
    GROUP BY rollout_id, attempt_id
)
SELECT
    row_number() OVER in_order AS attempt,
    rollout_id,
    attempt_id,
    (sum(sizes.spans) OVER in_order - sizes.spans)::BIGINT AS first_node,
    (sizes.spans + sizes.tokens)::BIGINT AS weight
FROM scored_attempts
JOIN sizes USING (rollout_id, attempt_id)
WHERE scored_attempts.counts
WINDOW in_order AS (ORDER BY rollout_id, attempt_id)
ORDER BY attempt
