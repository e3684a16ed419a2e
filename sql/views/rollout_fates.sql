-- What became of each training rollout: trained on, or left out and why.
-- Grain: one row per (run, epoch, rollout_id) of a training epoch.
-- Inputs: rollouts, trained_calls, policy_calls, stored.advantages, exclusions.
-- Rule: `counted`: the rollout has a result that counts. It was trained on if any of its calls was; else `fate` is why its group is left out, else the
-- first reason of its calls by name. Before the epoch is derived it is `not derived yet`; other fates are a state.
WITH trained AS (
    SELECT DISTINCT calls.run, calls.epoch, calls.rollout_id
    FROM trained_calls AS trained
    JOIN policy_calls AS calls ON calls.run = trained.run AND calls.epoch = trained.epoch AND calls.call_id = trained.call_id
),
groups AS (
    SELECT run, epoch, rollout_id, min(left_out) AS reason FROM stored.advantages GROUP BY ALL
),
calls AS (
    SELECT run, epoch, rollout_id, min(reason) AS reason FROM exclusions GROUP BY ALL
)
SELECT
    rollouts.run,
    rollouts.epoch,
    rollouts.rollout_id,
    rollouts.state = 'counts' AS counted,
    trained.rollout_id IS NOT NULL AS trained,
    CASE
        WHEN rollouts.state <> 'counts' THEN rollouts.state
        WHEN trained.rollout_id IS NOT NULL THEN 'trained on'
        ELSE coalesce(groups.reason, calls.reason, 'not derived yet')
    END AS fate
FROM rollouts
LEFT JOIN trained USING (run, epoch, rollout_id)
LEFT JOIN groups USING (run, epoch, rollout_id)
LEFT JOIN calls USING (run, epoch, rollout_id)
WHERE rollouts.mode = 'train'
