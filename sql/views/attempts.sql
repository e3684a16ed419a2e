-- Every attempt of a rollout, also those that never ended, and which of them counts.
-- Grain: one row per (rollout_id, attempt_id) that left a `rollout.start` or a `rollout` span.
-- Inputs: spans, epoch_manifests, stored.scored_attempts.
-- Rule for `state`: as the epoch was derived (`counts`, `superseded`, `infrastructure`). Before that, of the attempts that the infrastructure did
-- not break the first to end counts. `unfinished`: no root span. `no_outcome`: its root span does not say how it ended. `late`: it ended after
-- the epoch was sealed. `outside`: of a plan that the epoch gave up. `seconds` is NULL while it runs.
WITH executions AS (
    SELECT
        rollout_id,
        attempt_id,
        min(run) AS run,
        min(epoch) AS epoch,
        min(mode) AS mode,
        min(group_id) AS group_id,
        min(task_id) AS task_id,
        min(outcome) AS outcome,
        min(error) AS error,
        min(start_ns) AS start_ns,
        min(start_ns) FILTER (op = 'rollout') AS root_start_ns,
        min(end_ns) FILTER (op = 'rollout') AS end_ns,
        min(record_offset) FILTER (op = 'rollout') AS ended_offset,
        min(task) AS task,
        min(output) AS output,
        min(prompts) AS prompts
    FROM spans
    WHERE op IN ('rollout', 'rollout.start')
    GROUP BY rollout_id, attempt_id
),
derived_epochs AS (
    SELECT DISTINCT run, epoch, mode FROM stored.scored_attempts
),
judged AS (
    SELECT
        executions.*,
        CASE
            WHEN scored.counts THEN 'counts'
            WHEN scored.left_out IS NOT NULL THEN scored.left_out
            WHEN ended_offset IS NULL THEN 'unfinished'
            WHEN executions.outcome = 'infrastructure' THEN 'infrastructure'
            WHEN executions.outcome IS NULL THEN 'no_outcome'
            WHEN ended_offset >= manifests.sealed_offset THEN 'late'
            WHEN ended_offset < manifests.opened_offset OR derived_epochs.run IS NOT NULL THEN 'outside'
        END AS known_state
    FROM executions
    LEFT JOIN epoch_manifests AS manifests USING (run, epoch, mode)
    LEFT JOIN derived_epochs USING (run, epoch, mode)
    LEFT JOIN stored.scored_attempts AS scored
        ON scored.rollout_id = executions.rollout_id AND scored.attempt_id = executions.attempt_id
)
SELECT
    run,
    epoch,
    mode,
    group_id,
    task_id,
    rollout_id,
    attempt_id,
    CASE
        WHEN known_state IS NOT NULL THEN known_state
        WHEN row_number() OVER (
            PARTITION BY run, epoch, mode, rollout_id, known_state ORDER BY end_ns, attempt_id
        ) = 1 THEN 'counts'
        ELSE 'superseded'
    END AS state,
    outcome,
    error,
    (end_ns - root_start_ns) / 1e9 AS seconds,
    make_timestamp_ns(start_ns) AS started,
    make_timestamp_ns(end_ns) AS ended,
    task,
    output,
    prompts
FROM judged
