-- The runs of the lake, the newest first.
-- Grain: one row per run. Inputs: epochs, rollouts, epoch_manifests. Parameters: none.
-- Rule: `right_first` and `right_last` are the shares of held-out rollouts that were right in the first and in the last evaluation (`first_when`,
-- `last_when`); `right_low` and `right_high` are the last one's 95% interval (Wilson's). `gained` is the mean difference over the tasks of both,
-- `gained_low` to `gained_high` its 95% interval, and `became` whether that is more than chance. `reward` is that of the last training epoch; if that
-- epoch trained on examples it is `imitated`. `seconds`: from the first rollout to the last.
WITH held_out AS (
    SELECT
        run,
        min(epoch) AS since,
        max(epoch) AS epoch,
        arg_min(share_success, epoch) AS right_first,
        arg_max(share_success, epoch) AS right_last,
        arg_max(rollouts, epoch) AS held_out_rollouts
    FROM epochs
    WHERE mode = 'evaluate' AND share_success IS NOT NULL
    GROUP BY run
),
evaluated_tasks AS (
    SELECT rollouts.run, rollouts.epoch, rollouts.task_id, held_out.since, avg(rollouts.success::INTEGER) AS share_right
    FROM rollouts
    JOIN held_out ON held_out.run = rollouts.run AND rollouts.epoch IN (held_out.since, held_out.epoch)
    WHERE rollouts.mode = 'evaluate' AND rollouts.state = 'counts' AND held_out.since < held_out.epoch
    GROUP BY ALL
),
gains AS (
    SELECT
        run,
        count(*) AS tasks,
        avg(later.share_right - earlier.share_right) AS gained,
        1.96 * stddev_samp(later.share_right - earlier.share_right) / sqrt(count(*)) AS half
    FROM evaluated_tasks AS earlier
    JOIN evaluated_tasks AS later USING (run, task_id)
    WHERE earlier.epoch = earlier.since AND later.epoch > later.since
    GROUP BY run
),
trained AS (
    SELECT run, epoch, mean_reward, imitates(manifests.settings, manifests.versions) AS imitated
    FROM epochs
    LEFT JOIN epoch_manifests AS manifests USING (run, epoch, mode)
    WHERE mode = 'train' AND mean_reward IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY run ORDER BY epoch DESC) = 1
),
activity AS (
    SELECT run, min(started) AS started, max(coalesce(ended, started)) AS last_seen FROM rollouts GROUP BY run
),
counts AS (
    SELECT
        run,
        count(*) FILTER (mode = 'train') AS epochs,
        coalesce(sum(rollouts), 0)::BIGINT AS rollouts,
        coalesce(sum(failed_rollouts), 0)::BIGINT AS failed_rollouts
    FROM epochs
    WHERE run IS NOT NULL
    GROUP BY run
)
SELECT
    run,
    activity.started,
    epoch_ns(activity.last_seen - activity.started) / 1e9 AS seconds,
    counts.epochs,
    counts.rollouts,
    counts.failed_rollouts,
    held_out.right_first,
    evaluated(held_out.since) AS first_when,
    held_out.right_last,
    evaluated(held_out.epoch) AS last_when,
    share_bound(held_out.right_last, held_out.held_out_rollouts, -1) AS right_low,
    share_bound(held_out.right_last, held_out.held_out_rollouts, 1) AS right_high,
    held_out.held_out_rollouts,
    gains.gained,
    gains.gained - gains.half AS gained_low,
    gains.gained + gains.half AS gained_high,
    more_than_chance(gains.tasks, gains.gained - gains.half, gains.gained + gains.half) AS became,
    trained.mean_reward AS reward,
    trained.imitated
FROM counts
LEFT JOIN held_out USING (run)
LEFT JOIN gains USING (run)
LEFT JOIN trained USING (run)
LEFT JOIN activity USING (run)
ORDER BY started DESC NULLS LAST, run
