-- Why calls were left out of training, by agent, with a rollout to look at.
-- Grain: one row per (epoch, policy, agent, reason) of a run. Inputs: exclusions, policy_calls, rollout_rewards, attempts.
-- `share` is of the policy's calls in the epoch; `lightning-flows explain ROLLOUT` shows the example in full.
WITH chosen AS (
    SELECT run FROM attempts WHERE mode = 'train' ORDER BY started DESC LIMIT 1
),
sampled AS (
    SELECT epoch, policy, count(*) AS calls FROM policy_calls JOIN chosen USING (run) GROUP BY epoch, policy
)
SELECT
    exclusions.epoch,
    exclusions.policy,
    coalesce(exclusions.agent, '(no name)') AS agent,
    exclusions.reason,
    count(*) AS calls,
    count(*) / any_value(sampled.calls) AS share,
    count(DISTINCT exclusions.rollout_id) AS rollouts,
    avg(rollout_rewards.reward) AS mean_reward,
    min(exclusions.rollout_id) AS example
FROM exclusions
JOIN chosen USING (run)
LEFT JOIN sampled ON sampled.epoch = exclusions.epoch AND sampled.policy IS NOT DISTINCT FROM exclusions.policy
LEFT JOIN rollout_rewards
    ON rollout_rewards.rollout_id = exclusions.rollout_id AND rollout_rewards.attempt_id = exclusions.attempt_id
GROUP BY exclusions.epoch, exclusions.policy, coalesce(exclusions.agent, '(no name)'), exclusions.reason
ORDER BY exclusions.epoch, exclusions.policy, calls DESC, exclusions.reason, agent
