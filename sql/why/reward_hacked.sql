-- One part of the reward rises while another falls: the policy may have found what is cheap to get.
-- Grain: one row per (epoch, rising reward, falling reward). Parameters: run. Inputs: rewards_given, rollouts.
-- Rule: compared with the first training epoch in which both were given, each by more than three standard errors.
-- Remedy: Read the best rollouts of the epoch; weigh the parts anew (`reward.weights`), or give the cheap part only where the other is earned.
-- Evidence: FROM reward_sources(p_run := $run)
WITH limits AS (
    SELECT 3.0 AS errors, 8 AS least_rollouts
),
parts AS (
    SELECT
        given.epoch,
        given.reward_name,
        avg(given.reward) AS reward,
        coalesce(var_samp(given.reward), 0) / count(*) AS variance
    FROM rewards_given AS given
    JOIN rollouts USING (run, epoch, rollout_id, attempt_id)
    WHERE given.run = $run AND rollouts.mode = 'train' AND given.source <> 'failure' AND isfinite(given.reward)
    GROUP BY ALL
    HAVING count(*) >= (SELECT least_rollouts FROM limits)
),
changes AS (
    SELECT
        parts.*,
        first.reward AS first_reward,
        (parts.reward - first.reward) / nullif(sqrt(parts.variance + first.variance), 0) AS change
    FROM parts
    JOIN (FROM parts QUALIFY epoch = min(epoch) OVER (PARTITION BY reward_name)) AS first USING (reward_name)
)
SELECT
    rising.epoch,
    'train' AS mode,
    NULL::VARCHAR AS policy,
    'warning' AS severity,
    format(
        '{} rose from {:.2f} to {:.2f} while {} fell from {:.2f} to {:.2f}',
        rising.reward_name, rising.first_reward, rising.reward, falling.reward_name, falling.first_reward, falling.reward
    ) AS what
FROM changes AS rising
JOIN changes AS falling USING (epoch)
CROSS JOIN limits
WHERE rising.change > errors AND falling.change < -errors
