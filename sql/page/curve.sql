-- How a run went, epoch by epoch: reward of its rollouts and share of held-out tasks right, each with a 95% interval.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: rollouts, epoch_manifests.
-- Rule: `algorithms`: those of the epoch's policies that are not the default. An epoch is `imitated` if all its policies trained on examples (sft):
-- then its reward is that of the examples; `demonstrations` are rollouts with given replies. `trained_on`: training rollouts of the run up to then
-- (the epoch of an evaluation is the number of epochs trained before it); `minutes`: since the run's first rollout began. The interval of a share is
-- Wilson's (1927); that of a mean reward is normal over the means of the groups, since rollouts of a group have the task in common.
WITH counted AS (
    SELECT epoch, mode, group_id, reward, success, demonstration, started, ended
    FROM rollouts
    WHERE run = $run AND state = 'counts'
),
groups AS (
    SELECT epoch, mode, group_id, avg(reward) AS reward FROM counted GROUP BY ALL
),
means AS (
    SELECT epoch, mode, avg(reward) AS reward, coalesce(1.96 * stddev_samp(reward) / sqrt(count(reward)), 0) AS half
    FROM groups
    GROUP BY ALL
),
sums AS (
    SELECT
        epoch,
        mode,
        count(*) AS rollouts,
        count(DISTINCT group_id) AS tasks,
        count(success) AS judged,
        count(*) FILTER (demonstration) AS demonstrations,
        avg(success::INTEGER) AS share_right,
        max(ended) AS ended
    FROM counted
    GROUP BY ALL
),
algorithms AS (
    SELECT
        epoch,
        mode,
        imitates(settings, versions) AS imitated,
        nullif(array_to_string(list_sort(list_distinct([a.value FOR a IN algorithms_of(settings)])), ', '), '') AS algorithms
    FROM epoch_manifests
    WHERE run = $run AND mode = 'train'
)
SELECT
    epoch,
    mode,
    name_of(mode, epoch) AS name,
    algorithms.algorithms,
    coalesce(algorithms.imitated, false) AS imitated,
    demonstrations,
    rollouts,
    tasks,
    means.reward,
    means.reward - half AS reward_low,
    means.reward + half AS reward_high,
    share_right,
    share_bound(share_right, judged, -1) AS right_low,
    share_bound(share_right, judged, 1) AS right_high,
    coalesce(
        sum(rollouts) FILTER (mode = 'train') OVER (ORDER BY epoch + (mode = 'train')::INTEGER RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
        0
    )::BIGINT AS trained_on,
    epoch_ns(ended - (SELECT min(started) FROM counted)) / 6e10 AS minutes
FROM sums
JOIN means USING (epoch, mode)
LEFT JOIN algorithms USING (epoch, mode)
ORDER BY epoch, mode
