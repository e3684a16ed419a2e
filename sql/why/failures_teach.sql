-- Failed rollouts, each scored as its failure says, carry the gradient: the policy learns what fails, not what is right.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: advantages, rollouts.
-- Rule: their share of the sum of all absolute advantages that are trained; a failure is an error or a timeout of the agent.
-- Remedy: Look at what fails first; where it is not the policy's fault (a tool, a limit of time), leave failures out: `reward.failure_reward: null`.
-- Evidence: FROM error_messages(p_run := $run)
WITH limits AS (
    SELECT 0.25 AS many, 0.5 AS most
),
weighed AS (
    SELECT
        advantages.epoch,
        advantages.policy,
        sum(abs(advantages.advantage)) AS gradient,
        sum(abs(advantages.advantage)) FILTER (rollouts.outcome <> 'ok') AS of_failures,
        count(DISTINCT advantages.rollout_id) FILTER (rollouts.outcome <> 'ok') AS failures,
        count(DISTINCT advantages.rollout_id) AS rollouts
    FROM advantages
    JOIN rollouts USING (run, epoch, rollout_id, attempt_id)
    WHERE advantages.run = $run AND advantages.left_out IS NULL
    GROUP BY ALL
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    CASE WHEN of_failures > most * gradient THEN 'warning' ELSE 'note' END AS severity,
    format('{} failed rollouts of {} carry {:.0f}% of the gradient', failures, rollouts, 100 * of_failures / gradient) AS what
FROM weighed
CROSS JOIN limits
WHERE of_failures > many * gradient
