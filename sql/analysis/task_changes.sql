-- Which held-out tasks were learned over a run's evaluations, which were forgotten, and when.
-- Grain: one row per held-out task whose result changed. Inputs: rollouts, attempts.
-- Parameters: p_run (default: the newest run that evaluates).
-- Rule: `by_epoch` is the share of the task's rollouts that reached success_reward, in the order of the evaluations; `first`,
-- `best` and `last` are taken from it. `became`: learned or forgotten (last above or below first), lost again or recovered (same as
-- at first, and better or worse between), better or worse (the reward changed, the share did not). `since`: the evaluation since
-- which it has stayed so; an evaluation's epoch is the number of epochs trained before it.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'evaluate' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
results AS (
    SELECT
        run,
        task_id,
        epoch,
        avg(success::INTEGER) AS share,
        avg(reward) AS reward,
        any_value(task_text) AS task,
        min(output) AS output
    FROM rollouts
    JOIN chosen USING (run)
    WHERE mode = 'evaluate' AND state = 'counts' AND success IS NOT NULL
    GROUP BY run, task_id, epoch
),
followed AS (
    SELECT
        *,
        lead(epoch) OVER (PARTITION BY run, task_id ORDER BY epoch) AS next_epoch,
        sign(share - first(share) OVER evaluations) AS gained,
        sign(last(share) OVER evaluations - first(share) OVER evaluations) AS gained_at_last
    FROM results
    WINDOW evaluations AS (
        PARTITION BY run, task_id ORDER BY epoch ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),
tasks AS (
    SELECT
        run,
        task_id,
        any_value(task) AS task,
        first(share ORDER BY epoch) AS first,
        max(share) AS best,
        min(share) AS worst,
        last(share ORDER BY epoch) AS last,
        list(share ORDER BY epoch) AS by_epoch,
        max(next_epoch) FILTER (gained <> gained_at_last) AS since,
        first(reward ORDER BY epoch) AS reward_first,
        last(reward ORDER BY epoch) AS reward_last,
        first(output ORDER BY epoch) AS output_first,
        last(output ORDER BY epoch) AS output_last
    FROM followed
    GROUP BY run, task_id
)
SELECT
    run,
    task_id,
    CASE
        WHEN last > first THEN 'learned'
        WHEN last < first THEN 'forgotten'
        WHEN best > first THEN 'lost again'
        WHEN worst < first THEN 'recovered'
        WHEN reward_last > reward_first THEN 'better'
        WHEN reward_last < reward_first THEN 'worse'
    END AS became,
    since,
    first,
    best,
    last,
    by_epoch,
    reward_first,
    reward_last,
    task,
    output_first,
    output_last
FROM tasks
WHERE became IS NOT NULL
ORDER BY list_position(['forgotten', 'lost again', 'recovered', 'learned', 'worse', 'better'], became), since, task_id
