-- The spans of the bucket's attempts, each once, numbered.
-- Grain: one row per span; `node` names it within the epoch, (record_offset, record_index) is its row of `spans`.
-- Inputs: spans, bucket (attempt, rollout_id, attempt_id), numbering (one row: first_node).
-- Rule: same identity (rollout, attempt, trace, span) and same content is a retry, one row. Same identity and other
-- content is not (an agent that seeds `random` repeats ids): both stay, `repeated_id` is set. Numbered by attempt, start
-- and content: never by the order in which spans came.
WITH received AS MATERIALIZED (
    SELECT
        bucket.attempt,
        hash(spans.trace_id, spans.span_id) AS identity,
        spans.start_ns,
        spans.content_hash,
        spans.record_offset,
        spans.record_index
    FROM spans
    JOIN bucket USING (rollout_id, attempt_id)
    WHERE spans.op <> 'rollout.start'
),
shared AS MATERIALIZED (
    SELECT *, row_number() OVER (PARTITION BY attempt, identity, content_hash ORDER BY record_offset, record_index) AS copy
    FROM received
    SEMI JOIN (SELECT attempt, identity FROM received GROUP BY ALL HAVING count(*) > 1) AS several USING (attempt, identity)
),
repeated AS (
    SELECT attempt, identity FROM shared GROUP BY ALL HAVING count(DISTINCT content_hash) > 1
)
SELECT
    numbering.first_node + row_number() OVER (ORDER BY attempt, start_ns NULLS LAST, content_hash) AS node,
    attempt,
    repeated.identity IS NOT NULL AS repeated_id,
    record_offset,
    record_index
FROM received
ANTI JOIN (FROM shared WHERE copy > 1) AS retries USING (record_offset, record_index)
LEFT JOIN repeated USING (attempt, identity)
CROSS JOIN numbering
