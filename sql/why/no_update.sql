-- Training had no effect: nothing to train on, or a gradient of 0.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: policy_epochs, signals.
-- Remedy: See where the calls went (view exclusion_reasons); a gradient of 0 means that advantages, weights of the rewards or the learning rate are 0.
-- Evidence: SELECT epoch, policy, version, trained_version, skipped, calls, trainable_calls, trained_calls FROM policy_epochs WHERE run = $run
WITH limits AS (
    SELECT 1e-8 AS least_norm
)
SELECT epoch, 'train' AS mode, policy, 'error' AS severity, 'nothing was trained: ' || skipped AS what
FROM policy_epochs
WHERE run = $run AND skipped IS NOT NULL AND NOT contains(skipped, 'train_every')
UNION ALL
SELECT epoch, 'train', policy, 'error', format('the norm of the gradient is {:.2g}: the new version is the former', value)
FROM signals
CROSS JOIN limits
WHERE run = $run AND mode = 'train' AND signal = 'grad_norm' AND value < least_norm
