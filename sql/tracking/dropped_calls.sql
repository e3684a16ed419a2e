-- Calls that a run's epochs left out of training, by reason.
-- Grain: one row per (epoch, reason). Parameters: run. Inputs: exclusion_reasons.
SELECT epoch, reason, sum(calls)::BIGINT AS calls
FROM exclusion_reasons
WHERE run = $run
GROUP BY ALL
ORDER BY ALL
