-- What was trained between two evaluations, for each held-out task that flipped between them: which tasks, kinds and agents moved.
-- Grain: one row per (run, task_id, epoch, policy, agent, trained_task_id).
-- Inputs: rollouts, training_rows, token_scores, sequences, stored.policy_calls.
-- Rule: a held-out task flipped if the share of its rollouts that were right rose (`became` learned) or fell (forgotten) between two successive
-- evaluations; `since` and `epoch` are the epochs trained before each. `sure`: the share of the flips of its direction that chance does not
-- explain. Chance flips as many back, so it is 1 - flips the other way / flips this way, over all held-out tasks of the two evaluations, and at
-- least 0. `push`: what the trained task's tokens add to the gradient, the sum of advantage × ratio × loss weight over tokens that are not
-- clipped; above 0, the sampled tokens became likelier. `size_share`: its size as a share of all that was trained in between. The agent is that of
-- the sequence's first call.
-- This shows what moved together, not the cause. Many tasks of the kind that flipped one way (`kind_learned`, `kind_forgotten`) support it.
WITH results AS (
    SELECT run, epoch, task_id, any_value(task_kind(task)) AS kind, avg(success::INTEGER) AS share_right
    FROM rollouts
    WHERE mode = 'evaluate' AND state = 'counts' AND success IS NOT NULL
    GROUP BY run, epoch, task_id
),
following AS (
    SELECT
        *,
        lag(epoch) OVER (PARTITION BY run, task_id ORDER BY epoch) AS since,
        lag(share_right) OVER (PARTITION BY run, task_id ORDER BY epoch) AS share_before
    FROM results
),
flips AS (
    SELECT
        *,
        CASE WHEN share_right > share_before THEN 'learned' ELSE 'forgotten' END AS became,
        count(*) OVER (PARTITION BY run, epoch) AS flipped,
        count(*) OVER (PARTITION BY run, epoch, share_right > share_before) AS this_way,
        count(*) FILTER (share_right > share_before) OVER (PARTITION BY run, epoch, kind) AS kind_learned,
        count(*) FILTER (share_right < share_before) OVER (PARTITION BY run, epoch, kind) AS kind_forgotten
    FROM following
    WHERE share_right <> share_before
),
tokens AS (
    SELECT
        rows.run,
        rows.epoch,
        rows.policy,
        calls.agent,
        sequences.rollout_id,
        unnest(coalesce(scores.numbers, list_where(sequences.advantages, sequences.loss_mask::BOOLEAN[]))) AS advantage,
        unnest(rows.ratios) AS ratio,
        unnest(rows.loss_weights) AS loss_weight,
        unnest(rows.clipped) AS clipped
    FROM training_rows AS rows
    JOIN sequences
        ON sequences.run = rows.run AND sequences.epoch = rows.epoch AND sequences.sequence_id = rows.sequence_id
    LEFT JOIN (FROM token_scores WHERE name = 'advantages') AS scores
        ON scores.run = rows.run AND scores.epoch = rows.epoch AND scores.policy = rows.policy AND scores.sequence_id = rows.sequence_id
    LEFT JOIN (SELECT run, epoch, call_id_of(run, epoch, call_id) AS call_id, agent FROM stored.policy_calls) AS calls
        ON calls.run = rows.run AND calls.epoch = rows.epoch AND calls.call_id = sequences.call_ids[1]
),
rollout_pushes AS (
    SELECT
        run,
        epoch,
        policy,
        agent,
        rollout_id,
        count(*) AS tokens,
        coalesce(sum(advantage::DOUBLE * ratio * loss_weight) FILTER (NOT clipped), 0) AS push
    FROM tokens
    GROUP BY ALL
),
pushes AS (
    SELECT
        pushes.run,
        pushes.epoch,
        pushes.policy,
        pushes.agent,
        rollouts.task_id,
        any_value(task_kind(rollouts.task)) AS kind,
        any_value(rollouts.task_text) AS task,
        count(*) AS rollouts,
        sum(pushes.tokens)::BIGINT AS tokens,
        sum(pushes.push) AS push,
        sum(abs(pushes.push)) AS size
    FROM rollout_pushes AS pushes
    JOIN rollouts
        ON rollouts.run = pushes.run AND rollouts.epoch = pushes.epoch AND rollouts.rollout_id = pushes.rollout_id
    WHERE rollouts.mode = 'train'
    GROUP BY ALL
),
moved AS (
    SELECT
        flips.run,
        flips.task_id,
        flips.since,
        flips.epoch,
        pushes.policy,
        pushes.agent,
        pushes.task_id AS trained_task_id,
        any_value(pushes.task) AS trained_task,
        any_value(pushes.kind) AS trained_kind,
        sum(pushes.rollouts)::BIGINT AS rollouts,
        sum(pushes.tokens)::BIGINT AS tokens,
        sum(pushes.push) AS push,
        sum(pushes.size) AS size
    FROM flips
    JOIN pushes ON pushes.run = flips.run AND pushes.epoch >= flips.since AND pushes.epoch < flips.epoch
    GROUP BY flips.run, flips.task_id, flips.since, flips.epoch, pushes.policy, pushes.agent, pushes.task_id
)
SELECT
    flips.run,
    flips.task_id,
    flips.kind AS task_kind,
    flips.since,
    flips.epoch,
    flips.became,
    flips.share_before,
    flips.share_right,
    greatest(1 - (flips.flipped - flips.this_way) / flips.this_way, 0) AS sure,
    flips.kind_learned,
    flips.kind_forgotten,
    moved.policy,
    moved.agent,
    moved.trained_task_id,
    moved.trained_task,
    moved.trained_kind,
    moved.trained_kind IS NOT DISTINCT FROM flips.kind AS same_kind,
    moved.rollouts,
    moved.tokens,
    moved.push,
    moved.size / sum(moved.size) OVER (PARTITION BY flips.run, flips.task_id, flips.epoch) AS size_share
FROM flips
JOIN moved ON moved.run = flips.run AND moved.task_id = flips.task_id AND moved.epoch = flips.epoch
ORDER BY flips.run, flips.epoch, flips.task_id, size_share DESC, moved.trained_task_id, moved.policy, moved.agent
