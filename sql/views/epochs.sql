-- How each epoch went: over the attempts that count, and what arrived too late or could not be read.
-- Grain: one row per (run, epoch, mode), from the moment it is opened.
-- Inputs: rollouts, attempts, epoch_manifests, spans, rejections.
-- Rule: `rollouts` have a result (`failed_rollouts`: error or timeout), `unfinished` have none (yet); `attempts` counts all their attempts.
-- `share_success` is the share of rollouts that reached success_reward, once they are derived. `mean_reward` is over the rewards of view
-- rollouts. `reward_uniform` is what that mean would be if all tasks were drawn alike: each rollout is divided by the weight of its task in the
-- draw (NULL if all were). `late`: spans of the epoch's attempts that arrived after it was sealed; they are kept, and nothing derived reads
-- them. `rejected`: spans of its attempts that could not be decoded; those without a scope count for every epoch that was open then.
WITH finished AS (
    SELECT
        run,
        epoch,
        mode,
        count(*) FILTER (state = 'counts') AS rollouts,
        count(*) FILTER (state IN ('unfinished', 'infrastructure', 'late')) AS unfinished,
        count(*) FILTER (state = 'counts' AND outcome <> 'ok') AS failed_rollouts,
        avg(success::INTEGER) FILTER (state = 'counts') AS share_success,
        list_avg(list_sort(list(reward) FILTER (state = 'counts'))) AS mean_reward,
        uniform_mean(reward, CASE WHEN state = 'counts' THEN weight END) AS reward_uniform,
        sum(calls) FILTER (state = 'counts')::BIGINT AS calls,
        sum(response_tokens) FILTER (state = 'counts')::BIGINT AS response_tokens,
        list_avg(list_sort(list(seconds) FILTER (state = 'counts'))) AS mean_seconds,
        min(started) AS started
    FROM rollouts
    WHERE run IS NOT NULL
    GROUP BY run, epoch, mode
),
executed AS (
    SELECT run, epoch, mode, count(*) AS attempts FROM attempts WHERE run IS NOT NULL GROUP BY ALL
),
late AS (
    SELECT attempts.run, attempts.epoch, attempts.mode, count(*) AS late
    FROM spans
    JOIN attempts USING (rollout_id, attempt_id)
    JOIN epoch_manifests AS manifests
        ON manifests.run = attempts.run AND manifests.epoch = attempts.epoch AND manifests.mode = attempts.mode
    WHERE spans.record_offset >= manifests.sealed_offset
    GROUP BY ALL
),
rejected AS (
    SELECT manifests.run, manifests.epoch, manifests.mode, sum(rejections.spans)::BIGINT AS rejected
    FROM rejections
    LEFT JOIN attempts USING (rollout_id, attempt_id)
    JOIN epoch_manifests AS manifests
        ON CASE
            WHEN attempts.run IS NULL THEN
                rejections.record_offset >= manifests.opened_offset
                AND (manifests.sealed_offset IS NULL OR rejections.record_offset < manifests.sealed_offset)
            ELSE attempts.run = manifests.run AND attempts.epoch = manifests.epoch AND attempts.mode = manifests.mode
        END
    GROUP BY ALL
)
SELECT
    run,
    epoch,
    mode,
    manifests.versions,
    manifests.sealed_offset IS NOT NULL AS sealed,
    coalesce(finished.rollouts, 0) AS rollouts,
    greatest(manifests.planned_rollouts - coalesce(finished.rollouts, 0), coalesce(finished.unfinished, 0)) AS unfinished,
    coalesce(executed.attempts, 0) AS attempts,
    coalesce(finished.failed_rollouts, 0) AS failed_rollouts,
    finished.share_success,
    finished.mean_reward,
    finished.reward_uniform,
    coalesce(finished.calls, 0) AS calls,
    coalesce(finished.response_tokens, 0) AS response_tokens,
    finished.mean_seconds,
    finished.started,
    coalesce(late.late, 0) AS late,
    coalesce(rejected.rejected, 0) AS rejected
FROM epoch_manifests AS manifests
FULL JOIN finished USING (run, epoch, mode)
LEFT JOIN executed USING (run, epoch, mode)
LEFT JOIN late USING (run, epoch, mode)
LEFT JOIN rejected USING (run, epoch, mode)
ORDER BY run, epoch, mode
