-- Right after new weights were loaded, trainer and model server differ much more than before.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: signals.
-- Rule: `mismatch` of an epoch that is on policy, compared with the epoch before, which had another version. If a prefix cache survives the swap, the
-- first calls are answered with the former version's keys and values.
-- Remedy: Look whether vLLM resets its prefix cache when weights are swapped (start it with `--no-enable-prefix-caching` to see whether it is that), and whether calls ran through the swap (staleness).
-- Evidence: SELECT epoch, policy, policy_version, lag, calls FROM staleness WHERE run = $run AND mode = 'train' ORDER BY ALL
WITH limits AS (
    SELECT 0.02 AS least_mismatch, 5.0 AS least_growth
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
steps AS (
    SELECT *, lag(mismatch) OVER steps AS former, lag(version) OVER steps AS former_version
    FROM measured
    WINDOW steps AS (PARTITION BY policy ORDER BY epoch)
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    'warning' AS severity,
    format('the mismatch is {:.2g} nats a token with version {:.0f}; it was {:.2g} with version {:.0f}', mismatch, version, former, former_version) AS what
FROM steps
CROSS JOIN limits
WHERE version <> former_version AND mismatch > least_mismatch AND mismatch > least_growth * former
