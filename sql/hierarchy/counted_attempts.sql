-- The attempts that count, numbered: a bucket is a range of `attempt`.
-- Grain: one row per attempt that counts. `spans` is what it weighs in a bucket: its spans, and its tokens.
-- Inputs: scored_attempts, spans.
-- Rule: numbered in order of rollout and attempt, so that no result depends on how many make a bucket.
WITH counted AS (
    SELECT rollout_id, attempt_id FROM scored_attempts WHERE counts
),
sizes AS (
    -- 250 tokens of a call (ids, logprobs) fill the memory of about one span.
    SELECT rollout_id, attempt_id, count(*) + sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) // 250 AS spans
    FROM spans
    GROUP BY rollout_id, attempt_id
)
SELECT
    row_number() OVER (ORDER BY rollout_id, attempt_id) AS attempt,
    rollout_id,
    attempt_id,
    sizes.spans::BIGINT AS spans
FROM counted
JOIN sizes USING (rollout_id, attempt_id)
ORDER BY attempt
