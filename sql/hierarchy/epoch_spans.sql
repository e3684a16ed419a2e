-- The spans that the epoch is made of, each once.
-- Grain: one row per span of an attempt that counts; `node` names it within the epoch.
-- Inputs: spans, scored_attempts.
-- Rule: same identity (rollout, attempt, trace, span) and same content is a retry, one row. Same identity and other
-- content is not (an agent that seeds `random` repeats ids): both stay, `repeated_id` is set.
WITH once AS (
    SELECT spans.*
    FROM spans
    SEMI JOIN (SELECT rollout_id, attempt_id FROM scored_attempts WHERE counts) AS counting USING (rollout_id, attempt_id)
    WHERE op <> 'rollout.start'
    QUALIFY row_number() OVER (
        PARTITION BY rollout_id, attempt_id, trace_id, span_id, content_hash ORDER BY record_offset, record_index
    ) = 1
)
SELECT
    row_number() OVER (ORDER BY rollout_id, attempt_id, start_ns NULLS LAST, trace_id, span_id, content_hash) AS node,
    count(*) OVER (PARTITION BY rollout_id, attempt_id, trace_id, span_id) > 1 AS repeated_id,
    *
FROM once
ORDER BY node
