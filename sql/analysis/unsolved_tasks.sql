-- Which training tasks the policy never solves, or only sometimes, newest first.
-- Grain: one row per task of a run's training, in its newest epoch. Inputs: rollouts, attempts.
-- Parameters: p_run (default: the newest run that trains), p_epoch (default: for each task the newest epoch that tried it),
-- p_verdict (default: never and sometimes).
-- Rule: `verdict` is never, sometimes or always, by how many of the epoch's rollouts reached success_reward; always is left out
-- unless p_verdict asks for it. `spread` is highest minus lowest reward: a group without any teaches nothing. `epochs` is how many
-- epochs tried the task, `right_ones_in_all` how many of all its rollouts were right.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
tried AS (
    SELECT
        run,
        epoch,
        task_id,
        any_value(task_text) AS task,
        count(*) AS rollouts,
        count(*) FILTER (success) AS right_ones,
        count(*) FILTER (outcome <> 'ok') AS failed,
        avg(reward) AS mean_reward,
        max(reward) - min(reward) AS spread
    FROM rollouts
    JOIN chosen USING (run)
    WHERE mode = 'train' AND state = 'counts' AND success IS NOT NULL
    GROUP BY run, epoch, task_id
),
judged AS (
    SELECT
        *,
        CASE WHEN right_ones = 0 THEN 'never' WHEN right_ones < rollouts THEN 'sometimes' ELSE 'always' END AS verdict,
        count(*) OVER (PARTITION BY task_id) AS epochs,
        sum(right_ones) OVER (PARTITION BY task_id)::BIGINT AS right_ones_in_all
    FROM tried
    QUALIFY epoch = coalesce(p_epoch, max(epoch) OVER (PARTITION BY task_id))
)
SELECT
    run,
    epoch,
    task_id,
    verdict,
    rollouts,
    right_ones,
    failed,
    mean_reward,
    spread,
    epochs,
    right_ones_in_all,
    task
FROM judged
WHERE CASE WHEN p_verdict IS NULL THEN verdict <> 'always' ELSE verdict = p_verdict END
ORDER BY epoch DESC, verdict, mean_reward, task_id
