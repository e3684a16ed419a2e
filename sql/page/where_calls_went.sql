-- Where the calls of a run's training rollouts went: sampled, then trained on, or left out and why.
-- Grain: one row per (policy, reason); NULL: trained on. Parameters: run; epoch (NULL: all). Inputs: policy_epochs, exclusion_reasons.
WITH reasons AS (
    SELECT policy, NULL AS reason, sum(trained_calls)::BIGINT AS calls
    FROM policy_epochs
    WHERE run = $run AND ($epoch IS NULL OR epoch = $epoch)
    GROUP BY ALL
    UNION ALL
    SELECT policy, reason, sum(calls)::BIGINT
    FROM exclusion_reasons
    WHERE run = $run AND ($epoch IS NULL OR epoch = $epoch)
    GROUP BY ALL
)
SELECT policy, reason, calls, calls / greatest(sum(calls) OVER (PARTITION BY policy), 1) AS share
FROM reasons
ORDER BY policy, reason NULLS FIRST
