-- More and more tasks get the same answer, and it is rewarded: the policy may have found one that passes for right.
-- Grain: one row per epoch. Parameters: run. Inputs: rollouts.
-- Rule: the answer that was given to most tasks, and its share of the tasks, compared with the first training epoch.
-- Remedy: Read that answer and what the grader says of it; a grader that accepts an empty, a general or a guessed answer has to be mended before training goes on.
-- Evidence: SELECT epoch, output, count(DISTINCT task_id) AS tasks, avg(reward) AS reward FROM rollouts WHERE run = $run AND mode = 'train' GROUP BY ALL ORDER BY epoch, tasks DESC
WITH limits AS (
    SELECT 0.5 AS least_share, 0.3 AS least_growth, 4 AS least_tasks
),
answers AS (
    SELECT epoch, output, count(DISTINCT task_id) AS tasks, avg(reward) AS reward
    FROM rollouts
    WHERE run = $run AND mode = 'train' AND state = 'counts' AND output IS NOT NULL AND output <> 'null'
    GROUP BY ALL
),
asked AS (
    SELECT epoch, count(DISTINCT task_id) AS of_tasks, avg(reward) AS mean_reward
    FROM rollouts
    WHERE run = $run AND mode = 'train' AND state = 'counts'
    GROUP BY ALL
),
course AS (
    SELECT *, tasks / of_tasks AS share, first_value(tasks / of_tasks) OVER (ORDER BY epoch) AS first_share
    FROM (FROM answers QUALIFY row_number() OVER (PARTITION BY epoch ORDER BY tasks DESC, output) = 1)
    JOIN asked USING (epoch)
)
SELECT
    epoch,
    'train' AS mode,
    NULL::VARCHAR AS policy,
    'warning' AS severity,
    format(
        '{} of {} tasks were answered {} (reward {:.2f}, all answers {:.2f}); in the first epoch the most common answer was that of {:.0f}%',
        tasks, of_tasks, left(output, 80), reward, mean_reward, 100 * first_share
    ) AS what
FROM course
CROSS JOIN limits
WHERE of_tasks >= least_tasks AND share >= least_share AND share >= first_share + least_growth AND reward >= mean_reward
