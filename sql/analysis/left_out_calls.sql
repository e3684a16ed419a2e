-- Why calls were left out of training, by agent, with an example rollout.
-- Grain: one row per (epoch, policy, agent, reason) of a run. Inputs: exclusions, policy_calls, rollout_rewards, attempts.
-- Parameters: p_run (default: the newest run that trains), p_epoch (default: all).
-- `share` is of the policy's calls in the epoch; `lightning-flows explain ROLLOUT` shows the example in full.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
sampled AS (
    SELECT epoch, policy, count(DISTINCT (attempt_id, span_id, call_id)) AS calls
    FROM (
        SELECT run, epoch, policy, attempt_id, span_id, call_id FROM policy_calls
        UNION ALL
        SELECT run, epoch, policy, attempt_id, span_id, call_id FROM exclusions WHERE call_id IS NULL
    )
    JOIN chosen USING (run)
    GROUP BY epoch, policy
)
SELECT
    exclusions.run,
    exclusions.epoch,
    exclusions.policy,
    exclusions.agent,
    exclusions.reason,
    count(DISTINCT (exclusions.attempt_id, exclusions.span_id, exclusions.call_id)) AS calls,
    count(DISTINCT (exclusions.attempt_id, exclusions.span_id, exclusions.call_id)) / any_value(sampled.calls) AS share,
    count(DISTINCT exclusions.rollout_id) AS rollouts,
    avg(rollout_rewards.reward) AS mean_reward,
    min(exclusions.rollout_id) AS example
FROM exclusions
JOIN chosen USING (run)
LEFT JOIN sampled ON sampled.epoch = exclusions.epoch AND sampled.policy IS NOT DISTINCT FROM exclusions.policy
LEFT JOIN rollout_rewards
    ON rollout_rewards.rollout_id = exclusions.rollout_id AND rollout_rewards.attempt_id = exclusions.attempt_id
WHERE p_epoch IS NULL OR exclusions.epoch = p_epoch
GROUP BY exclusions.run, exclusions.epoch, exclusions.policy, exclusions.agent, exclusions.reason
ORDER BY exclusions.epoch, exclusions.policy, calls DESC, exclusions.reason, exclusions.agent
