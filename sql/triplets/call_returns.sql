-- What each call that could be trained on is credited with.
-- Grain: one row per call of policy_calls that is not left out. `agent` and `step` say what it is compared with: the same
-- step of the same agent in the other rollouts of its group; with `assign: final` all of a rollout is one step.
-- Inputs: policy_calls, call_steps, rollout_rewards, reward_steps, reward_settings, policies.
-- Rule: final: the rollout's reward. nearest: the sum of the rewards the call was given. discounted: the sum of those
-- that it and the agent's later calls were given, times gamma a call in between. Where a reward's agent is ambiguous,
-- no call of the attempt has a return that could be trusted (`ambiguous_reward`).
WITH trainable AS (
    SELECT calls.call_id, calls.policy, calls.group_id, calls.rollout_id, calls.attempt_id, steps.agent, steps.step
    FROM policy_calls AS calls
    LEFT JOIN call_steps AS steps USING (call_id)
    WHERE calls.left_out IS NULL
),
sums AS (
    -- Sorted lists: a sum must not depend on the order of its input.
    SELECT
        calls.call_id,
        list_sum(list_sort(list(
            rewards.value * CASE WHEN settings.assign = 'discounted' THEN pow(settings.gamma, rewards.step - calls.step) ELSE 1 END
        ))) AS total
    FROM trainable AS calls
    CROSS JOIN reward_settings AS settings
    JOIN reward_steps AS rewards
        ON rewards.policy = calls.policy
        AND rewards.rollout_id = calls.rollout_id
        AND rewards.attempt_id = calls.attempt_id
        AND rewards.agent = calls.agent
        AND rewards.step >= calls.step
        AND (settings.assign = 'discounted' OR rewards.step = calls.step)
    GROUP BY calls.call_id
),
doubtful AS (
    SELECT DISTINCT policy, rollout_id, attempt_id FROM reward_steps WHERE left_out = 'ambiguous_agent'
)
SELECT
    calls.call_id,
    calls.policy,
    calls.group_id,
    calls.rollout_id,
    calls.attempt_id,
    CASE WHEN settings.assign = 'final' THEN '' ELSE calls.agent END AS agent,
    CASE WHEN settings.assign = 'final' THEN 0 ELSE calls.step END AS step,
    rewards.reward,
    CASE WHEN settings.assign = 'final' THEN rewards.reward ELSE coalesce(sums.total, 0) END AS return,
    CASE WHEN doubtful.policy IS NOT NULL THEN 'ambiguous_reward' END AS left_out
FROM trainable AS calls
CROSS JOIN reward_settings AS settings
JOIN rollout_rewards AS rewards ON rewards.rollout_id = calls.rollout_id AND rewards.attempt_id = calls.attempt_id
LEFT JOIN sums ON sums.call_id = calls.call_id
LEFT JOIN doubtful
    ON doubtful.policy = calls.policy
    AND doubtful.rollout_id = calls.rollout_id
    AND doubtful.attempt_id = calls.attempt_id
ORDER BY calls.call_id
