-- Which choices of which calls make one sequence, and why a sequence begins where it does.
-- Grain: one row per (call_id, choice). Inputs: stored.merges.
SELECT
    * REPLACE (
        call_id_of(run, epoch, call_id) AS call_id,
        rollout_id || '/' || attempt_id || '/' || sequence_id AS sequence_id
    )
FROM stored.merges
