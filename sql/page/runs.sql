-- The runs of the lake, the newest first.
-- Grain: one row per run. Inputs: epochs, rollouts. Parameters: none.
-- Rule: `right_first` and `right_last` are the shares of held-out rollouts that were right in the first and in the last evaluation;
-- `right_low` and `right_high` are the last one's 95% interval (Wilson's).
WITH held_out AS (
    SELECT
        run,
        arg_min(share_success, epoch) AS right_first,
        arg_max(share_success, epoch) AS right_last,
        arg_max(rollouts, epoch) AS held_out_rollouts
    FROM epochs
    WHERE mode = 'evaluate' AND share_success IS NOT NULL
    GROUP BY run
),
activity AS (
    SELECT run, min(started) AS started, max(coalesce(ended, started)) AS last_seen FROM rollouts GROUP BY run
)
SELECT
    epochs.run,
    count(*) FILTER (epochs.mode = 'train') AS epochs,
    coalesce(sum(epochs.rollouts), 0)::BIGINT AS rollouts,
    coalesce(sum(epochs.failed_rollouts), 0)::BIGINT AS failed_rollouts,
    arg_max(epochs.mean_reward, epochs.epoch) FILTER (epochs.mode = 'train') AS reward,
    any_value(held_out.right_first) AS right_first,
    any_value(held_out.right_last) AS right_last,
    any_value(share_bound(right_last, held_out_rollouts, -1)) AS right_low,
    any_value(share_bound(right_last, held_out_rollouts, 1)) AS right_high,
    any_value(held_out.held_out_rollouts) AS held_out_rollouts,
    any_value(activity.started) AS started,
    any_value(activity.last_seen) AS last_seen
FROM epochs
LEFT JOIN held_out USING (run)
LEFT JOIN activity USING (run)
WHERE epochs.run IS NOT NULL
GROUP BY epochs.run
ORDER BY started DESC NULLS LAST, epochs.run
