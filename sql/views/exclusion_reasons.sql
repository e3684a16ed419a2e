-- Why calls were left out of training, counted.
-- Grain: one row per (run, epoch, policy, reason). Inputs: exclusions, policy_calls.
-- Rule: `share` is of all calls that the policy sampled in the epoch, trained ones included.
WITH sampled AS (
    SELECT run, epoch, policy, count(*) AS calls FROM policy_calls GROUP BY ALL
),
reasons AS (
    SELECT run, epoch, policy, reason, count(*) AS calls, count(DISTINCT rollout_id) AS rollouts
    FROM exclusions
    GROUP BY ALL
)
SELECT
    reasons.run,
    reasons.epoch,
    reasons.policy,
    reasons.reason,
    reasons.calls,
    reasons.rollouts,
    reasons.calls / sampled.calls AS share
FROM reasons
LEFT JOIN sampled
    ON sampled.run = reasons.run
    AND sampled.epoch = reasons.epoch
    AND sampled.policy IS NOT DISTINCT FROM reasons.policy
ORDER BY reasons.run, reasons.epoch, reasons.policy, reasons.calls DESC, reasons.reason
