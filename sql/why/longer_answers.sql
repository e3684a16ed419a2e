-- The policy talks more than at first and gets no more reward for it.
-- Grain: one row per epoch. Parameters: run. Inputs: rollouts, epoch_manifests.
-- Rule: compared with the run's first epoch of the same algorithms, since one of `algorithm: sft` may have shown the answers; over groups, each divided
-- by the weight of its task in the draw. The reward rose if the 95% interval of its change is above 0.
-- Remedy: Take the length out of the reward's way: `advantages: dr_grpo` (no division by the deviation), a limit of tokens, or a reward that costs tokens (`reward.air`); question reward_by_length shows whether longer answers get more.
-- Evidence: FROM reward_by_length(p_run := $run)
WITH limits AS (
    SELECT 1.5 AS least_growth
),
groups AS (
    SELECT
        epoch, group_id, coalesce(any_value(weight), 1) AS weight, avg(response_tokens) AS tokens, avg(reward) AS reward
    FROM rollouts
    WHERE run = $run AND mode = 'train' AND state = 'counts' AND reward IS NOT NULL
    GROUP BY ALL
),
means AS (
    SELECT epoch, uniform_mean(reward, weight) AS reward, uniform_mean(tokens, weight) AS tokens
    FROM groups
    GROUP BY epoch
),
algorithms AS (
    SELECT epoch, algorithms_of(settings) AS algorithms
    FROM epoch_manifests
    WHERE run = $run AND mode = 'train'
),
epochs AS (
    SELECT
        epoch,
        algorithms,
        means.reward,
        means.tokens,
        uniform_variance(groups.reward, weight, means.reward) AS variance
    FROM groups
    JOIN means USING (epoch)
    JOIN algorithms USING (epoch)
    GROUP BY ALL
),
compared AS (
    SELECT epochs.*, first.tokens AS first_tokens, first.reward AS first_reward, 1.96 * sqrt(epochs.variance + first.variance) AS half
    FROM epochs
    JOIN (FROM epochs QUALIFY epoch = min(epoch) OVER (PARTITION BY algorithms)) AS first
        ON first.algorithms IS NOT DISTINCT FROM epochs.algorithms
)
SELECT
    epoch,
    'train' AS mode,
    NULL::VARCHAR AS policy,
    'warning' AS severity,
    format('{:.0f} tokens a rollout where there were {:.0f}; the reward went from {:.2f} to {:.2f}', tokens, first_tokens, first_reward, reward) AS what
FROM compared
CROSS JOIN limits
WHERE first_tokens > 0 AND tokens > least_growth * first_tokens AND reward - first_reward <= half
