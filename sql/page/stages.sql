-- What the time of a run went into.
-- Grain: one row per (epoch, mode, stage). Parameters: run. Inputs: signals.
SELECT epoch, mode, replace(substr(signal, 9), '_', ' ') AS stage, value AS seconds
FROM signals
WHERE run = $run AND starts_with(signal, 'seconds/')
ORDER BY epoch, mode, seconds DESC
