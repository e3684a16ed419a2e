-- A few held-out tasks with the agent's answer in an earlier and in a later evaluation, for a person to read.
-- Grain: at most `$most` rows, one per task, better ones first. Inputs: rollouts.
-- Parameters: $run; $since and $epoch: the number of epochs trained before each of the two evaluations; $most.
-- Rule: one rollout a task represents each evaluation, the first by its id. Of three tasks, two became better and one worse, if there are such; of
-- five, three and two. The largest changes come first; tasks that did not change fill up.
WITH answers AS (
    SELECT epoch, task_id, rollout_id, task_text AS task, output, error, reward
    FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND state = 'counts' AND reward IS NOT NULL AND epoch IN ($since, $epoch)
    QUALIFY row_number() OVER (PARTITION BY epoch, task_id ORDER BY rollout_id) = 1
),
changes AS (
    SELECT
        task_id,
        later.task,
        later.rollout_id,
        earlier.output AS output_before,
        later.output AS output_after,
        earlier.error AS error_before,
        later.error AS error_after,
        earlier.reward AS reward_before,
        later.reward AS reward_after,
        sign(later.reward - earlier.reward) AS direction
    FROM answers AS earlier
    JOIN answers AS later USING (task_id)
    WHERE earlier.epoch = $since AND later.epoch = $epoch
),
ranked AS (
    SELECT
        *,
        row_number() OVER (PARTITION BY direction ORDER BY abs(reward_after - reward_before) DESC, task_id) AS rank
    FROM changes
),
chosen AS (
    FROM ranked
    ORDER BY CASE direction WHEN 1 THEN 2 * rank WHEN -1 THEN 2 * rank + 3 ELSE 1000 + rank END, task_id
    LIMIT $most
)
SELECT task_id, task, rollout_id, output_before, output_after, error_before, error_after, reward_before, reward_after
FROM chosen
ORDER BY direction DESC, rank
