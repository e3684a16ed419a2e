-- The settings of each run that are not at their default, as its newest epoch read them.
-- Grain: one row per (run, setting). Inputs: epoch_manifests.
-- Rule: of training epochs and evaluations the one with the highest number counts; of two with the same number, the training epoch. `home`,
-- `run` and the values in `agent.environment` are not kept. A run of an older version has no rows.
WITH newest AS (
    SELECT run, arg_max(settings, (epoch, mode = 'train')) AS settings
    FROM epoch_manifests
    WHERE cardinality(settings) > 0
    GROUP BY run
)
SELECT run, entry.key AS setting, entry.value AS given
FROM (SELECT run, unnest(map_entries(settings)) AS entry FROM newest)
ORDER BY run, setting
