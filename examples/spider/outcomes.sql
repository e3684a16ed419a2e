-- What became of each held-out question in each evaluation of a run, and how hard the question is.
-- Grain: one row per rollout of an evaluation that counts. Inputs: rollouts, rewards. Parameter: run.
-- `unit` is the database: what an interval is over.
-- Rule: the grader's words say whether the query ran (reward.py). `kind` is of the gold query: `join`; else `nested`, with more
-- than one SELECT; else `one table`. `epoch` is the number of epochs trained before.
WITH asked AS (
    SELECT epoch, rollout_id, attempt_id, reward, upper(task ->> 'query') AS gold, task ->> 'db_id' AS db_id, task ->> 'id' AS id
    FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND state = 'counts'
),
told AS (
    SELECT attempt_id, any_value(words) AS words FROM rewards WHERE source = 'grader' GROUP BY attempt_id
)
SELECT
    asked.epoch,
    asked.db_id AS unit,
    asked.id,
    CASE
        WHEN contains(gold, ' JOIN ') THEN 'join'
        WHEN regexp_matches(gold, 'SELECT.*\bSELECT\b', 's') THEN 'nested'
        ELSE 'one table'
    END AS kind,
    CASE
        WHEN asked.reward >= 1 THEN 'right'
        WHEN told.words IS NULL THEN 'no query'
        WHEN starts_with(told.words, 'does not run') THEN 'does not run'
        ELSE 'wrong'
    END AS outcome
FROM asked
LEFT JOIN told USING (attempt_id)
ORDER BY epoch, unit, id
