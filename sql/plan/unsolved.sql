-- Tasks of a training epoch in the order of the draw: tasks of a kind that the policy does not solve yet come more often.
-- Grain: one row per task_id. `weight`: how many times as often a task is drawn as one of weight 1.
-- Inputs: tasks (task_id, task, kind, place), tried (epoch, task_id, kind, rollout_id, success, reward), draw (seed, epoch).
-- Rule: a task's kind is task_kind(task), or the task itself. The weight of a kind is the share of its tries that failed. A try counts half as much
-- with every later epoch that tried its kind; one failed try from before the run is added, so that no kind is left out for good.
-- The n-th task of a kind is at (n - 1 + u) / (weight * tasks of the kind), with u drawn from 0 to 1 for each kind: kinds take turns by their
-- weight. If each task is its own kind, this is sequential Poisson sampling (Ohlsson 1998). Within a kind, tasks tried least often come first.
WITH kinds AS (
    SELECT
        kind,
        count(*) AS tasks,
        md5_number_lower(concat_ws('/', any_value(draw.seed), any_value(draw.epoch), kind)) / 18446744073709551616.0 AS u
    FROM tasks
    CROSS JOIN draw
    GROUP BY kind
),
weighed_tries AS (
    SELECT kind, success, 0.5 ** (dense_rank() OVER (PARTITION BY kind ORDER BY epoch DESC) - 1) AS counts
    FROM tried
),
solved AS (
    SELECT kind, sum(success::INTEGER * counts) AS solved, sum(counts) AS tries
    FROM weighed_tries
    GROUP BY kind
),
weighed AS (
    SELECT kinds.*, 1 - coalesce(solved.solved / (solved.tries + 1), 0) AS weight
    FROM kinds
    LEFT JOIN solved USING (kind)
),
times AS (
    SELECT task_id, count(DISTINCT epoch) AS epochs FROM tried GROUP BY task_id
),
placed AS (
    SELECT
        tasks.task_id,
        tasks.kind,
        tasks.place,
        row_number() OVER (
            PARTITION BY tasks.kind
            ORDER BY coalesce(times.epochs, 0), md5_number_lower(concat_ws('/', draw.seed, tasks.task_id)), tasks.place
        ) AS n
    FROM tasks
    CROSS JOIN draw
    LEFT JOIN times USING (task_id)
)
SELECT placed.task_id, weighed.weight
FROM placed
JOIN weighed USING (kind)
ORDER BY (placed.n - 1 + weighed.u) / (weighed.weight * weighed.tasks), placed.place
