-- Why calls were left out of training, counted.
-- Grain: one row per (run, epoch, policy, reason). Inputs: exclusions
SELECT run, epoch, policy, reason, count(*) AS calls
FROM exclusions
GROUP BY ALL
ORDER BY run, epoch, policy, calls DESC
