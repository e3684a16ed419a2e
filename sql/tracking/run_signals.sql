-- The curves of a run's page in the Prefect UI: every signal that is a measure of learning.
-- Grain: one row per (policy, signal, epoch). Parameters: run. Inputs: signals.
-- Rule: seconds and the number of the version are left out, because the table of epochs has them.
SELECT policy, signal, epoch, value
FROM signals
WHERE run = $run AND value IS NOT NULL AND signal NOT LIKE 'seconds/%' AND signal <> 'version'
ORDER BY ALL
