-- Which recorded rollouts a finetuning selects from, and why it does not take the others.
-- Grain: one row per rollout of the chosen epochs that ended; `left_out` is NULL if its attempts are scored for examples (advantages and
-- exclusions have what becomes of those).
-- Inputs: spans, chosen_epochs (run, epoch, opened_offset, sealed_offset), chosen_plans (rollout_id), time_window (since_ns, until_ns; NULL: no
-- limit).
-- Rule: the first reason that holds: it came after its epoch was sealed; its epoch did not plan it; it began outside the window [since, until).
-- A rollout began when its first attempt did.
WITH rollouts AS (
    SELECT
        chosen_epochs.run AS source_run,
        chosen_epochs.epoch AS source_epoch,
        spans.rollout_id,
        min(spans.start_ns) AS began_ns,
        bool_or(
            spans.record_offset >= chosen_epochs.opened_offset AND spans.record_offset < chosen_epochs.sealed_offset
        ) AS in_time
    FROM spans
    JOIN chosen_epochs ON chosen_epochs.run = spans.run AND chosen_epochs.epoch = spans.epoch
    WHERE spans.op = 'rollout' AND spans.mode = 'train'
    GROUP BY ALL
)
SELECT
    source_run,
    source_epoch,
    rollout_id,
    began_ns,
    CASE
        WHEN NOT in_time THEN 'after_the_seal'
        WHEN rollout_id NOT IN (FROM chosen_plans) THEN 'not_planned'
        WHEN began_ns < since_ns OR began_ns >= until_ns THEN 'outside_window'
    END AS left_out
FROM rollouts
CROSS JOIN time_window
ORDER BY source_run, source_epoch, rollout_id
