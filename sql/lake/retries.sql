-- Rows that repeat an earlier row: the same span sent again.
-- Grain: one row per row of `arriving` that is not the first of its kind.
-- Inputs: arriving, stored (rollout_id, attempt_id, trace_id, span_id, content_hash, sender, record_offset, record_index).
-- Rule: a row repeats another if it has the same identity (NULL equals NULL), the same content and the same sender. The first by (record_offset,
-- record_index) stays, in whichever table it is. A copy from another sender is another span, since senders may set different attributes. If the
-- first row was stored before senders were recorded (NULL), its retry may have one. A hash that occurs once is decided without a look at
-- identities. Two rows of one place, which no lake should have, both stay: places name the rows that are removed.
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
