-- The time that the stages of a run took, and their tokens.
-- Grain: one row per (epoch, mode, stage). Parameters: run. Inputs: epoch_manifests, epochs.
-- Rule: `tokens` are those that the rollouts sampled, and those that the training read (its metric `tokens`); NULL: the stage has none.
SELECT
    epoch,
    mode,
    stage.key AS stage,
    (stage.value ->> '$.seconds')::DOUBLE AS seconds,
    CASE
        WHEN stage.key = 'rollouts' THEN epochs.response_tokens
        ELSE (stage.value ->> '$.output.metrics.tokens')::DOUBLE::BIGINT
    END AS tokens
FROM epoch_manifests AS manifests
CROSS JOIN json_each(manifests.stages) AS stage
LEFT JOIN epochs USING (run, epoch, mode)
WHERE run = $run AND stage.value ->> '$.seconds' IS NOT NULL
ORDER BY epoch, mode, seconds DESC
