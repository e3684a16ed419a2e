-- Which attempt of each rollout counts.
-- Grain: one row per attempt of the epoch that ended (has a root span).
-- Inputs: spans, epoch_scope (run, epoch, mode; several rows if a finetuning takes several epochs), planned (rollout_id: what the epoch
-- plans; empty: all).
-- Rule: an attempt that the infrastructure broke, or that does not say how it ended, never counts. Of the others the first to end does.
WITH roots AS (
    SELECT
        rollout_id,
        attempt_id,
        min(mode) AS mode,
        min(group_id) AS group_id,
        min(task_id) AS task_id,
        min(outcome) AS outcome,
        min(error) AS error,
        min(start_ns) AS start_ns,
        min(end_ns) AS end_ns
    FROM spans
    SEMI JOIN epoch_scope USING (run, epoch, mode)
    WHERE op = 'rollout' AND (rollout_id IN (FROM planned) OR NOT EXISTS (FROM planned))
    GROUP BY rollout_id, attempt_id
),
ranked AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY rollout_id ORDER BY coalesce(outcome, 'infrastructure') = 'infrastructure', end_ns, attempt_id
        ) AS place
    FROM roots
)
SELECT
    * EXCLUDE (place),
    place = 1 AND coalesce(outcome, 'infrastructure') <> 'infrastructure' AS counts,
    CASE
        WHEN outcome = 'infrastructure' THEN 'infrastructure'
        WHEN outcome IS NULL THEN 'no_outcome'
        WHEN place > 1 THEN 'superseded'
    END AS left_out
FROM ranked
ORDER BY rollout_id, attempt_id
