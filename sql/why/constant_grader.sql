-- The grader gives every rollout the same number.
-- Grain: one row per (epoch, mode, reward name). Parameters: run. Inputs: rewards_given, rollouts, epoch_manifests.
-- Rule: only rewards that count, over rollouts of several tasks. It is a warning if an epoch has only the lowest number that the grader ever gave in
-- the run; if it has only the highest (all solved), nothing is reported. It is a note if the grader never gave a higher number before (the policy
-- may not be able to do anything yet), before any epoch that compares rollouts (the tasks may be the reason; `algorithm: sft` does not compare, and
-- may show the answers), and for one of several rewards, which may well be constant.
-- Remedy: Try the grader on an answer that is right and on one that is wrong (`lightning-flows regrade` grades the recorded rollouts again); one that calls a judge or compares text often fails to its default.
-- Evidence: SELECT epoch, reward_name, reward, count(*) AS rollouts FROM rewards_given WHERE run = $run AND source = 'grader' GROUP BY ALL ORDER BY ALL
WITH limits AS (
    SELECT 8 AS least_rollouts, 2 AS least_tasks
),
graded AS (
    SELECT rollouts.epoch, rollouts.mode, given.reward_name, given.reward, rollouts.task_id
    FROM rewards_given AS given
    JOIN rollouts USING (run, epoch, rollout_id, attempt_id)
    WHERE given.run = $run AND given.source = 'grader' AND given.counts
),
comparing AS (
    SELECT epoch, mode FROM epoch_manifests WHERE run = $run AND mode = 'train' AND NOT imitates(settings, versions)
),
of_run AS (
    SELECT
        reward_name,
        min(reward) AS lowest,
        max(reward) AS highest,
        bool_or(comparing.epoch IS NOT NULL) AS compared,
        count(*) OVER () AS names
    FROM graded
    LEFT JOIN comparing USING (epoch, mode)
    GROUP BY ALL
),
epochs AS (
    SELECT
        epoch,
        mode,
        reward_name,
        min(reward) AS reward,
        max(reward) AS highest_here,
        max(max(reward)) OVER (PARTITION BY reward_name ORDER BY epoch, mode = 'train' ROWS UNBOUNDED PRECEDING) AS highest_yet,
        count(*) AS rollouts,
        count(DISTINCT task_id) AS tasks
    FROM graded
    GROUP BY epoch, mode, reward_name
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    CASE WHEN NOT compared OR names > 1 THEN 'note' WHEN lowest = highest THEN 'error' WHEN highest_yet = reward THEN 'note' ELSE 'warning' END AS severity,
    format(
        'the grader gave {} {:g} to all {} rollouts of {} tasks{}',
        reward_name, reward, rollouts, tasks, CASE WHEN lowest = highest THEN ', as in the whole run' ELSE '' END
    ) AS what
FROM epochs
JOIN of_run USING (reward_name)
CROSS JOIN limits
WHERE reward = highest_here AND rollouts >= least_rollouts AND tasks >= least_tasks AND (lowest = highest OR reward = lowest)
