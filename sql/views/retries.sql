-- Rows of `spans` that repeat an earlier one: a batch that was sent again because its answer was lost.
-- Grain: one row per repeating row of spans, named by (record_offset, record_index). Inputs: spans.
-- Rule: same (rollout_id, attempt_id, trace_id, span_id) and same content; the row that came first is not in here.
-- Same identity and other content is no retry: two spans, both counted. `scoped` is false for spans without a rollout.
WITH resent AS (
    -- The hash covers the ids, so what it leaves for the exact rule below is little. By rollout: the rows of one are found
    -- without reading the others'.
    SELECT rollout_id, content_hash
    FROM spans
    WHERE rollout_id IS NOT NULL
    GROUP BY ALL
    HAVING count(*) > 1
),
candidates AS (
    SELECT true AS scoped, rollout_id, attempt_id, trace_id, span_id, content_hash, record_offset, record_index
    FROM spans
    JOIN resent USING (rollout_id, content_hash)
    UNION ALL
    SELECT false, rollout_id, attempt_id, trace_id, span_id, content_hash, record_offset, record_index
    FROM spans
    WHERE rollout_id IS NULL
)
SELECT scoped, rollout_id, attempt_id, trace_id, span_id, record_offset, record_index
FROM candidates
QUALIFY row_number() OVER (
    PARTITION BY scoped, rollout_id, attempt_id, trace_id, span_id, content_hash ORDER BY record_offset, record_index
) > 1
