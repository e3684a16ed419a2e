-- Rows that repeat a row before them: the same span sent again.
-- Grain: one row per row of `arriving` that is not the first of its kind.
-- Inputs: arriving, stored (rollout_id, attempt_id, trace_id, span_id, content_hash, sender, record_offset, record_index).
-- Rule: same identity (NULL is a value like others), same content and same sender; the first by (record_offset,
-- record_index) stays, wherever it lies. A copy that another sent is another span: it may say less, or more. Where the first
-- was stored before senders were written down (NULL), its retry has one. A hash that stands once is settled without looking at identities. Two rows of one place, which no
-- lake should have, both stay: a place names what goes.
WITH again AS (
    SELECT content_hash FROM arriving GROUP BY content_hash HAVING count(*) > 1
    UNION
    SELECT content_hash FROM stored SEMI JOIN arriving USING (content_hash)
),
suspects AS (
    SELECT *, true AS arrives FROM arriving SEMI JOIN again USING (content_hash)
    UNION ALL
    SELECT *, false AS arrives FROM stored SEMI JOIN again USING (content_hash)
),
numbered AS (
    SELECT
        *,
        dense_rank() OVER (
            PARTITION BY rollout_id, attempt_id, trace_id, span_id, content_hash, sender
            ORDER BY record_offset, record_index
        ) AS place,
        min((record_offset, record_index)) FILTER (sender IS NULL) OVER (
            PARTITION BY rollout_id, attempt_id, trace_id, span_id, content_hash
        ) AS unwritten
    FROM suspects
)
SELECT record_offset, record_index
FROM numbered
WHERE arrives AND (place > 1 OR coalesce(unwritten < (record_offset, record_index), false))
