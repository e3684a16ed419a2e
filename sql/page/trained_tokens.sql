-- What the trainer measured of the sampled tokens of one rollout, in the last optimizer step that trained them.
-- Grain: one row per call and choice that was trained. Parameters: run, epoch, rollout_id.
-- Inputs: sequences, merges, span_tree, training_rows.
-- Rule: the trained tokens of a sequence are the responses of its call_ids, one after the other; every list has one entry a token.
WITH chosen AS (
    SELECT sequences.call_ids, sequences.choices, measured.*
    FROM sequences
    JOIN (
        SELECT sequence_id, step, entropies, ratios, loss_weights, clipped
        FROM training_rows
        WHERE run = $run AND epoch = $epoch
    ) AS measured USING (sequence_id)
    WHERE sequences.run = $run AND sequences.epoch = $epoch AND sequences.rollout_id = $rollout_id
    QUALIFY row_number() OVER (PARTITION BY sequences.sequence_id ORDER BY measured.step DESC) = 1
),
parts AS (
    SELECT
        chosen.*,
        merges.call_id,
        merges.choice,
        merges.tokens - merges.prompt_tokens AS tokens,
        coalesce(sum(merges.tokens - merges.prompt_tokens) OVER (
            PARTITION BY chosen.sequence_id ORDER BY merges.place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0)::BIGINT AS before
    FROM chosen
    JOIN merges ON merges.run = $run AND merges.epoch = $epoch AND merges.sequence_id = chosen.sequence_id
    WHERE list_contains(
        [pair[1] || '.' || pair[2] FOR pair IN list_zip(chosen.call_ids, chosen.choices)], merges.call_id || '.' || merges.choice
    )
)
SELECT
    calls.span_id,
    parts.choice,
    parts.step,
    parts.entropies[before + 1:before + tokens] AS entropies,
    parts.ratios[before + 1:before + tokens] AS ratios,
    parts.loss_weights[before + 1:before + tokens] AS loss_weights,
    parts.clipped[before + 1:before + tokens] AS clipped
FROM parts
JOIN span_tree AS calls
    ON calls.run = $run
    AND calls.epoch = $epoch
    AND calls.rollout_id = $rollout_id
    AND calls.call_id = parts.call_id
    AND calls.twin_node IS NULL
ORDER BY calls.call_id, parts.choice
