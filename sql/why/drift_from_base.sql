-- Trainer and model server differ the more, the further the policy is from its base.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: signals.
-- Rule: `mismatch` (mean absolute difference of logprobs before the first step, nats), only of epochs that are on policy, so that age explains none of it.
-- Remedy: Serve what is trained: the same dtype on both sides, adapters merged or not on both, and no quantized model in vLLM; `training.importance_correction: token_truncate` bounds the damage meanwhile.
-- Evidence: SELECT epoch, policy, signal, value FROM signals WHERE run = $run AND mode = 'train' AND signal IN ('mismatch', 'version', 'staleness') ORDER BY ALL
WITH limits AS (
    SELECT 0.02 AS least_mismatch, 5.0 AS least_growth, 0.9 AS least_correlation, 3 AS least_epochs
),
measured AS (
    SELECT
        epoch,
        policy,
        max(value) FILTER (signal = 'mismatch') AS mismatch,
        max(value) FILTER (signal = 'version') AS version
    FROM signals
    WHERE run = $run AND mode = 'train'
    GROUP BY ALL
    HAVING mismatch IS NOT NULL AND coalesce(max(value) FILTER (signal = 'staleness'), 0) = 0
),
course AS (
    SELECT
        *,
        first_value(mismatch) OVER upto AS first_mismatch,
        corr(mismatch, version) OVER upto AS correlation,
        count(*) OVER upto AS epochs
    FROM measured
    WINDOW upto AS (PARTITION BY policy ORDER BY epoch)
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    'warning' AS severity,
    format(
        'the mismatch grew from {:.2g} to {:.2g} nats a token by version {:.0f} (correlation with the version {:.2f}), of calls that were on policy',
        first_mismatch, mismatch, version, correlation
    ) AS what
FROM course
CROSS JOIN limits
WHERE epochs >= least_epochs
    AND mismatch > least_mismatch
    AND mismatch > least_growth * first_mismatch
    AND correlation >= least_correlation
