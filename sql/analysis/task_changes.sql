-- Which held-out tasks the last evaluation got right that the first got wrong, and the other way round.
-- Grain: one row per held-out task whose result changed. Inputs: rollouts, attempts.
WITH chosen AS (
    SELECT run, min(epoch) AS before, max(epoch) AS after
    FROM attempts
    WHERE mode = 'evaluate'
    GROUP BY run
    ORDER BY max(started) DESC
    LIMIT 1
),
results AS (
    SELECT
        run,
        task_id,
        any_value(task) AS task,
        avg(reward) FILTER (epoch = before) AS reward_before,
        avg(reward) FILTER (epoch = after) AS reward_after,
        any_value(output) FILTER (epoch = before) AS output_before,
        any_value(output) FILTER (epoch = after) AS output_after
    FROM rollouts
    JOIN chosen USING (run)
    WHERE mode = 'evaluate' AND state = 'counts' AND epoch IN (before, after)
    GROUP BY run, task_id
)
SELECT
    run,
    task_id,
    CASE WHEN reward_after > reward_before THEN 'better' ELSE 'worse' END AS became,
    reward_before,
    reward_after,
    task,
    output_before,
    output_after
FROM results
WHERE reward_after <> reward_before
ORDER BY reward_after - reward_before, task_id
