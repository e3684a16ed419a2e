-- Why calls were left out of training, counted.
-- Grain: one row per (run, epoch, policy, reason). Inputs: stored.exclusions, stored.policy_calls.
-- Rule: `share` is of all calls that the policy sampled in the epoch, including trained ones and those of attempts that do not
-- count. A call of several choices (`n` > 1) counts once per reason.
WITH sampled AS (
    SELECT run, epoch, policy, count(DISTINCT (attempt_id, span_id, call_id)) AS calls
    FROM (
        SELECT run, epoch, policy, attempt_id, span_id, call_id FROM stored.policy_calls
        UNION ALL
        SELECT run, epoch, policy, attempt_id, span_id, call_id FROM stored.exclusions WHERE call_id IS NULL
    )
    GROUP BY ALL
),
reasons AS (
    SELECT run, epoch, policy, reason, count(DISTINCT (attempt_id, span_id, call_id)) AS calls, count(DISTINCT rollout_id) AS rollouts
    FROM stored.exclusions
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
