-- Where the calls of a run's training rollouts went: sampled, then trained on, or left out and why.
-- Grain: one row per (policy, reason); the row with reason NULL counts the trained ones, also if there are none. Parameters: run; epoch (NULL: all).
-- Inputs: trained_calls, epoch_manifests, exclusion_reasons.
WITH counted AS (
    SELECT policy, NULL AS reason, count(*) AS calls
    FROM trained_calls
    WHERE run = $run AND ($epoch IS NULL OR epoch = $epoch)
    GROUP BY policy
    UNION ALL
    SELECT unnest(map_keys(versions)), NULL, 0
    FROM epoch_manifests
    WHERE run = $run AND mode = 'train' AND ($epoch IS NULL OR epoch = $epoch)
    UNION ALL
    SELECT policy, reason, calls
    FROM exclusion_reasons
    WHERE run = $run AND ($epoch IS NULL OR epoch = $epoch)
),
reasons AS (
    SELECT policy, reason, sum(calls)::BIGINT AS calls FROM counted GROUP BY ALL
)
SELECT policy, reason, calls, calls / greatest(sum(calls) OVER (PARTITION BY policy), 1) AS share
FROM reasons
ORDER BY policy, reason NULLS FIRST
