-- The reward of every rollout that counts.
-- Grain: one row per rollout. `reward` is NULL if the rollout is left out of training; `left_out` says why.
-- Inputs: scored_attempts, bucket, rewards_given, reward_settings (one row: success_reward, failure_reward, grader, air).
-- Rule: the weighted sum of the rewards that count, including those of rules (`air`). Rules alone make a reward only if nothing else could give
-- one: no grader, and no emitted reward, not even a bad one. `success` is decided by the reward without `air`.
WITH totals AS (
    -- Sorted lists: a sum must not depend on the order of its input.
    SELECT
        rollout_id,
        attempt_id,
        list_sum(list_sort(list(value * weight) FILTER (counts))) AS total,
        CASE WHEN bool_or(counts AND source <> 'air') THEN list_sum(list_sort(list(value * weight) FILTER (counts AND source <> 'air'))) END AS given,
        list_sum(list_sort(list(value * weight) FILTER (counts AND source = 'air'))) AS air,
        count(*) FILTER (source <> 'air') AS rewards,
        array_to_string(list_sort(list_distinct(list(name) FILTER (counts AND source <> 'air'))), ', ') AS source
    FROM rewards_given
    GROUP BY rollout_id, attempt_id
),
judged AS (
    SELECT
        attempts.* EXCLUDE (left_out),
        totals.total,
        totals.given,
        totals.air,
        coalesce(totals.source, CASE WHEN settings.air THEN 'air' END) AS source,
        settings.success_reward,
        CASE
            WHEN attempts.outcome <> 'ok' AND settings.failure_reward IS NULL THEN 'failed_attempt'
            WHEN totals.given IS NULL AND NOT (settings.air AND settings.grader = '' AND coalesce(totals.rewards, 0) = 0) THEN 'no_reward'
        END AS left_out
    FROM scored_attempts AS attempts
    SEMI JOIN bucket USING (rollout_id, attempt_id)
    CROSS JOIN reward_settings AS settings
    LEFT JOIN totals USING (rollout_id, attempt_id)
)
SELECT
    rollout_id,
    attempt_id,
    mode,
    group_id,
    task_id,
    outcome,
    CASE WHEN left_out IS NULL THEN coalesce(total, 0) END AS reward,
    CASE WHEN left_out IS NULL THEN coalesce(air, 0) END AS air,
    outcome = 'ok' AND coalesce(given >= success_reward, false) AS success,
    CASE WHEN left_out IS NULL THEN source END AS source,
    left_out
FROM judged
ORDER BY rollout_id
