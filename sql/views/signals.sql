-- How training goes, one number a row: what MLflow, the console and Prometheus show.
-- Grain: one row per (run, epoch, mode, policy, signal). `policy` is NULL for a signal of no single policy. An evaluation's epoch is the number
-- of epochs trained before it. Signals of several kinds are named `dropped/<reason>`, `left_out/<reason>`, `seconds/<stage>`.
-- Inputs: epoch_manifests, stored.advantages, trained_calls, stored.sequences, exclusion_reasons, staleness, stored.rollout_rewards.
-- Rule: docs/algorithms.md has all signals. `reward` and `reward_spread` (standard deviation) are over the rollouts that a policy acted in, each
-- once; `reward_uniform` is the mean with each rollout divided by the weight of its task in the draw. `group_spread` is the mean deviation of a
-- group's returns; `groups_kept` the share of groups in which any rollout trains; `advantage_spread` the deviation of the advantages that are
-- trained; `fell_back` the share of advantages of `counterfactual` that compare with the whole group. `kept`: calls trained on; `dropped/…`: calls
-- left out, by reason. `staleness`: mean lag of the calls. `version`: the number of the version that the epoch began with. Measurements of the
-- trainer have its own names (`kl`, `entropy`, `clip_ratio`, …).
-- Sorted lists: no number may depend on the order of the input.
WITH rollouts AS (
    SELECT
        advantages.run,
        advantages.epoch,
        advantages.policy,
        advantages.rollout_id,
        min(advantages.reward) AS reward,
        manifests.weights[rewards.task_id] AS weight
    FROM stored.advantages AS advantages
    LEFT JOIN stored.rollout_rewards AS rewards USING (run, epoch, rollout_id, attempt_id)
    LEFT JOIN epoch_manifests AS manifests
        ON manifests.run = advantages.run AND manifests.epoch = advantages.epoch AND manifests.mode = 'train'
    GROUP BY ALL
),
rewards AS (
    SELECT
        run,
        epoch,
        policy,
        list_avg(list_sort(list(reward))) AS reward,
        uniform_mean(reward, weight) AS reward_uniform,
        list_stddev_pop(list_sort(list(reward))) AS reward_spread
    FROM rollouts
    GROUP BY ALL
),
groups AS (
    SELECT run, epoch, policy, group_id, agent, step, min(group_std) AS spread, bool_or(left_out IS NULL) AS kept
    FROM stored.advantages AS advantages
    GROUP BY ALL
),
spreads AS (
    SELECT
        run,
        epoch,
        policy,
        list_avg(list_sort(list(spread))) AS group_spread,
        avg(kept::INTEGER) AS groups_kept
    FROM groups
    GROUP BY ALL
),
trained AS (
    SELECT run, epoch, policy, list_stddev_pop(list_sort(list(advantage))) AS advantage_spread
    FROM stored.advantages AS advantages
    WHERE left_out IS NULL
    GROUP BY ALL
),
alike AS (
    SELECT run, epoch, policy, avg(fell_back::INTEGER) AS fell_back FROM stored.advantages AS advantages GROUP BY ALL
),
kept AS (
    SELECT run, epoch, policy, count(*)::DOUBLE AS kept FROM trained_calls GROUP BY ALL
),
derived AS (
    SELECT run, epoch, policy, count(*)::DOUBLE AS sequences FROM stored.sequences GROUP BY ALL
),
stale AS (
    SELECT run, epoch, policy, sum(lag * calls) / sum(calls) FILTER (lag IS NOT NULL) AS staleness
    FROM staleness
    WHERE mode = 'train' AND policy IS NOT NULL
    GROUP BY ALL
),
versions AS (
    SELECT run, epoch, mode, unnest(map_entries(versions)) AS entry FROM epoch_manifests
),
stages AS (
    SELECT manifests.run, manifests.epoch, manifests.mode, stage.key AS stage, stage.value AS done
    FROM epoch_manifests AS manifests, json_each(manifests.stages) AS stage
),
measured AS (
    SELECT stages.run, stages.epoch, stages.mode, substr(stages.stage, 7) AS policy, metric.key AS signal, metric.value::DOUBLE AS value
    FROM stages, json_each(stages.done, '$.output.metrics') AS metric
    WHERE starts_with(stages.stage, 'train ') AND metric.type IN ('DOUBLE', 'BIGINT', 'UBIGINT')
        AND metric.key NOT IN ('sequences', 'epoch', 'seed', 'steps', 'step')
),
held_out AS (
    SELECT
        run,
        epoch,
        avg(success::INTEGER) AS held_out_right,
        list_avg(list_sort(list(reward))) AS held_out_reward,
        count(DISTINCT group_id)::DOUBLE AS held_out_tasks
    FROM stored.rollout_rewards
    WHERE mode = 'evaluate'
    GROUP BY ALL
)
FROM (
    SELECT run, epoch, 'train' AS mode, policy, signal, value FROM rewards UNPIVOT (value FOR signal IN (reward, reward_uniform, reward_spread))
    UNION ALL
    SELECT run, epoch, 'train', policy, signal, value FROM spreads UNPIVOT (value FOR signal IN (group_spread, groups_kept))
    UNION ALL
    SELECT run, epoch, 'train', policy, 'advantage_spread', advantage_spread FROM trained
    UNION ALL
    SELECT run, epoch, 'train', policy, 'fell_back', fell_back FROM alike
    UNION ALL
    SELECT run, epoch, 'train', policy, 'kept', kept FROM kept
    UNION ALL
    SELECT run, epoch, 'train', policy, 'sequences', sequences FROM derived
    UNION ALL
    SELECT run, epoch, 'train', policy, 'dropped/' || reason, calls FROM exclusion_reasons
    UNION ALL
    SELECT run, epoch, 'train', policy, 'staleness', staleness FROM stale
    UNION ALL
    SELECT run, epoch, mode, entry.key, 'version', try_cast(substr(entry.value, 2) AS DOUBLE) FROM versions
    UNION ALL
    SELECT run, epoch, mode, policy, signal, value FROM measured
    UNION ALL
    SELECT run, epoch, mode, NULL, 'replaced_groups', (done ->> '$.output.replaced')::DOUBLE
    FROM stages
    WHERE stage = 'rollouts' AND (done ->> '$.output.replaced')::BIGINT > 0
    UNION ALL
    SELECT run, epoch, mode, NULL, 'seconds/' || replace(stage, ' ', '_'), (done ->> '$.seconds')::DOUBLE FROM stages
    UNION ALL
    SELECT run, epoch, 'evaluate', NULL, signal, value
    FROM held_out UNPIVOT (value FOR signal IN (held_out_right, held_out_reward, held_out_tasks))
)
WHERE value IS NOT NULL
ORDER BY run, epoch, mode, policy, signal
