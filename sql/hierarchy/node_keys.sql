-- The spans of the bucket's attempts, numbered.
-- Grain: one row per span; `node` is its number within the epoch, (record_offset, record_index) its row of `spans`.
-- Inputs: spans, bucket (attempt, rollout_id, attempt_id, first_node).
-- Rule: numbered by attempt, start, content and sender, never by the order in which spans came. There are no retries: the lake drops them as
-- they come (sql/lake/retries.sql). Spans that open, begin or end a rollout are in no tree.
SELECT
    -- A bucket's attempts follow each other, so one sort numbers all of them.
    (SELECT min(first_node) FROM bucket) + row_number() OVER (ORDER BY bucket.attempt, spans.start_ns NULLS LAST, spans.content_hash, spans.sender) AS node,
    bucket.attempt,
    spans.record_offset,
    spans.record_index
FROM spans
JOIN bucket USING (rollout_id, attempt_id)
WHERE spans.op NOT IN ('rollout.start', 'rollout.opened', 'rollout.ended')
