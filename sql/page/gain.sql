-- What the held-out tasks gained from the first evaluation of a run to its last, task by task, in reward and in share right.
-- Grain: one row; none before two evaluations. Parameters: run. Inputs: rollouts.
-- Rule: `became` and `right_became` say whether the difference is more than chance: its 95% interval excludes 0, over ten tasks or more.
WITH ends AS (
    FROM held_out_gains(p_run := $run) ORDER BY since, epoch DESC LIMIT 1
),
shares AS (
    SELECT epoch, task_id, avg(success::INTEGER) AS share_right
    FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND state = 'counts' AND success IS NOT NULL
    GROUP BY epoch, task_id
),
differences AS (
    SELECT
        count(*) AS right_tasks,
        avg(later.share_right - earlier.share_right) AS right_gained,
        1.96 * stddev_samp(later.share_right - earlier.share_right) / sqrt(count(*)) AS half
    FROM ends
    JOIN shares AS earlier ON earlier.epoch = ends.since
    JOIN shares AS later ON later.epoch = ends.epoch AND later.task_id = earlier.task_id
)
SELECT
    ends.*,
    evaluated(since) AS since_when,
    evaluated(epoch) AS epoch_when,
    more_than_chance(tasks, low, high) AS became,
    right_gained,
    right_gained - half AS right_low,
    right_gained + half AS right_high,
    more_than_chance(right_tasks, right_gained - half, right_gained + half) AS right_became
FROM ends
CROSS JOIN differences
