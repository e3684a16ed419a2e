-- What the time of a run went into.
-- Grain: one row per (epoch, mode, stage). Parameters: run. Inputs: epoch_manifests.
SELECT epoch, mode, stage.key AS stage, (stage.value ->> '$.seconds')::DOUBLE AS seconds
FROM epoch_manifests, json_each(stages) AS stage
WHERE run = $run AND stage.value ->> '$.seconds' IS NOT NULL
ORDER BY epoch, mode, seconds DESC
