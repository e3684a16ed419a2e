-- The updates are too large: many tokens are clipped, or the policy has left its base.
-- Grain: one row per (epoch, policy, signal). Parameters: run. Inputs: signals.
-- Remedy: Lower `training.learning_rate`, or take fewer steps an epoch; with `training.beta` above 0 the KL holds the policy near its base.
-- Evidence: SELECT epoch, policy, signal, value FROM signals WHERE run = $run AND signal IN ('clip_ratio', 'kl', 'ratio', 'grad_norm', 'learning_rate') ORDER BY ALL
WITH limits AS (
    SELECT unnest(['clip_ratio', 'kl']) AS signal, unnest([0.5, 1.0]) AS most, unnest(['of the trained tokens are clipped', 'nats a token from the reference']) AS meaning
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    'warning' AS severity,
    CASE WHEN signal = 'kl' THEN format('kl {:.2f} {}', value, meaning) ELSE format('{:.0f}% {}', 100 * value, meaning) END AS what
FROM signals
JOIN limits USING (signal)
WHERE run = $run AND mode = 'train' AND value > most
