-- Tasks of a training epoch that not all rollouts solved: what the next epoch may try again.
-- Grain: one row per task_id. `unsolved`: the share of its rollouts without success, above 0. Input: rollout_rewards, of
-- one epoch.
-- Rule: a rollout without a reward says nothing of its task (its agent failed, its grader gave none).
SELECT task_id, avg((NOT success)::INT) AS unsolved
FROM rollout_rewards
WHERE left_out IS NULL
GROUP BY task_id
HAVING NOT bool_and(success)
ORDER BY task_id
