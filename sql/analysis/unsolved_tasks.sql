-- Which tasks are never or always solved: groups without spread teach nothing.
-- Grain: one row per (epoch, task) of a run's training. Inputs: rollout_rewards, attempts.
-- `verdict`: always, never (no rollout reached success_reward and all rewards are equal), equal (the rewards are, though
-- some succeed and some do not), mixed.
WITH chosen AS (
    SELECT run FROM attempts WHERE mode = 'train' ORDER BY started DESC LIMIT 1
),
groups AS (
    SELECT
        epoch,
        group_id,
        task_id,
        count(*) AS rollouts,
        count(*) FILTER (success) AS right_ones,
        count(*) FILTER (outcome <> 'ok') AS failed,
        avg(reward) AS mean_reward,
        min(reward) AS lowest,
        max(reward) AS highest
    FROM rollout_rewards
    JOIN chosen USING (run)
    WHERE mode = 'train'
    GROUP BY epoch, group_id, task_id
)
SELECT
    epoch,
    task_id,
    CASE
        WHEN lowest < highest THEN 'mixed'
        WHEN right_ones = rollouts THEN 'always'
        WHEN right_ones = 0 THEN 'never'
        ELSE 'equal'
    END AS verdict,
    rollouts,
    right_ones,
    failed,
    mean_reward,
    lowest,
    highest
FROM groups
ORDER BY verdict = 'mixed', verdict, epoch, task_id
