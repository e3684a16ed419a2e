-- Two evaluations of a run on the same tasks, those that changed most first.
-- Grain: one row per task of both. Parameters: run, before, after (epochs trained before the evaluation). Inputs: rollouts.
WITH evaluated AS (
    SELECT
        epoch,
        task_id,
        any_value(task_text) AS task,
        avg(reward) AS reward,
        avg(success::INTEGER) AS share_right,
        min(rollout_id) AS rollout_id,
        arg_min(output, rollout_id) AS output
    FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND state = 'counts' AND epoch IN ($before, $after)
    GROUP BY epoch, task_id
)
SELECT
    task_id,
    former.task,
    former.reward AS reward_before,
    later.reward AS reward_after,
    former.share_right AS right_before,
    later.share_right AS right_after,
    former.rollout_id AS rollout_before,
    later.rollout_id AS rollout_after,
    former.output AS output_before,
    later.output AS output_after
FROM evaluated AS former
JOIN evaluated AS later USING (task_id)
WHERE former.epoch = $before AND later.epoch = $after
ORDER BY abs(later.reward - former.reward) DESC NULLS LAST, later.reward - former.reward, task_id
