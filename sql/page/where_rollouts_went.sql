-- Where a run's training rollouts went: sampled, then counted, then trained on, or left out and why.
-- Grain: one row per fate. Parameters: run. Inputs: rollouts, trained_calls, policy_calls, advantages, exclusions.
-- Rule: `counted` where the rollout has a result that counts. It is trained on where any of its calls is; else the fate is why its group
-- is left out, else the first reason of its calls by name. Of an epoch that is not derived yet it is `not derived yet`; other fates are a state.
WITH trained AS (
    SELECT DISTINCT calls.epoch, calls.rollout_id
    FROM trained_calls AS trained
    JOIN policy_calls AS calls ON calls.run = trained.run AND calls.epoch = trained.epoch AND calls.call_id = trained.call_id
    WHERE trained.run = $run
),
groups AS (
    SELECT epoch, rollout_id, min(left_out) AS reason FROM advantages WHERE run = $run GROUP BY ALL
),
calls AS (
    SELECT epoch, rollout_id, min(reason) AS reason FROM exclusions WHERE run = $run GROUP BY ALL
),
fates AS (
    SELECT
        rollouts.state = 'counts' AS counted,
        trained.rollout_id IS NOT NULL AS trained,
        CASE
            WHEN rollouts.state <> 'counts' THEN rollouts.state
            WHEN trained.rollout_id IS NOT NULL THEN 'trained on'
            ELSE coalesce(groups.reason, calls.reason, 'not derived yet')
        END AS fate
    FROM rollouts
    LEFT JOIN trained ON trained.epoch = rollouts.epoch AND trained.rollout_id = rollouts.rollout_id
    LEFT JOIN groups ON groups.epoch = rollouts.epoch AND groups.rollout_id = rollouts.rollout_id
    LEFT JOIN calls ON calls.epoch = rollouts.epoch AND calls.rollout_id = rollouts.rollout_id
    WHERE rollouts.run = $run AND rollouts.mode = 'train'
)
SELECT
    fate,
    counted,
    trained,
    count(*) AS rollouts,
    count(*) / sum(count(*)) OVER () AS share,
    sum(count(*)) OVER ()::BIGINT AS sampled_in_all,
    coalesce(sum(count(*)) FILTER (counted) OVER (), 0)::BIGINT AS counted_in_all,
    coalesce(sum(count(*)) FILTER (trained) OVER (), 0)::BIGINT AS trained_in_all
FROM fates
GROUP BY fate, counted, trained
ORDER BY trained DESC, counted DESC, rollouts DESC, fate
