-- The policy nearly always says the same before it has solved its tasks: it tries nothing new.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: signals, epochs, epoch_manifests.
-- Rule: `entropy` (nats a trained token) compared with the first epoch of the same algorithms, because an epoch of `algorithm: sft` measures the answers
-- that it was shown. If nearly all rollouts succeed there is nothing left to try.
-- Remedy: Sample with `temperature: 1`, lower the learning rate, or pay for entropy (`training.trl: {entropy_coef: …}`); `alarm.entropy_below` stops such a run.
-- Evidence: SELECT epoch, policy, value AS entropy FROM signals WHERE run = $run AND signal = 'entropy' ORDER BY ALL
WITH limits AS (
    SELECT 0.05 AS low, 0.2 AS share_of_first, 0.9 AS solved
),
algorithms AS (
    SELECT epoch, algorithms_of(settings) AS algorithms
    FROM epoch_manifests
    WHERE run = $run AND mode = 'train'
),
course AS (
    SELECT epoch, policy, value AS entropy, first_value(value) OVER (PARTITION BY policy, algorithms ORDER BY epoch) AS first_entropy
    FROM signals
    JOIN algorithms USING (epoch)
    WHERE run = $run AND mode = 'train' AND signal = 'entropy'
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    'warning' AS severity,
    format('entropy {:.3f} nats a token, {:.3f} at first; {:.0f}% of the rollouts succeed', entropy, first_entropy, 100 * share_success) AS what
FROM course
JOIN (FROM epochs WHERE run = $run AND mode = 'train') AS epochs USING (epoch)
CROSS JOIN limits
WHERE entropy < low AND entropy < share_of_first * first_entropy AND share_success < solved
