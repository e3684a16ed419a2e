-- Each policy in each training epoch: its versions, what was sampled and trained on, and how old it was.
-- Grain: one row per (run, epoch, policy).
-- Inputs: epoch_manifests, stored.policy_calls, stored.call_returns, trained_calls, stored.sequences, staleness.
-- Rule: `version` is what the epoch began with; `trained_version` is what its training made of it (the same if nothing was trained; `skipped` has
-- the reason), NULL before that. `trainable_calls` have no reason of their own to be left out; `trained_calls` are those of them that it was
-- trained on (the others: exclusion_reasons). `mean_return` is over the calls that could be trained on, by this policy's rewards. `lag` is the
-- largest of view staleness, `share_stale` the share of calls that an older version sampled.
WITH versions AS (
    SELECT run, epoch, unnest(map_entries(versions)) AS entry, stages
    FROM epoch_manifests
    WHERE mode = 'train'
),
policies AS (
    SELECT
        run,
        epoch,
        entry.key AS policy,
        entry.value AS version,
        json_extract(stages, '$."train ' || entry.key || '".output') AS output
    FROM versions
),
called AS (
    SELECT
        run,
        epoch,
        policy,
        count(*) AS calls,
        count(*) FILTER (left_out IS NULL) AS trainable_calls,
        sum(response_tokens)::BIGINT AS response_tokens
    FROM stored.policy_calls
    GROUP BY ALL
),
returned AS (
    SELECT run, epoch, policy, list_avg(list_sort(list(return))) AS mean_return FROM stored.call_returns GROUP BY ALL
),
trained AS (
    SELECT run, epoch, policy, count(*) AS trained_calls FROM trained_calls GROUP BY ALL
),
derived AS (
    SELECT run, epoch, policy, count(*) AS sequences FROM stored.sequences GROUP BY ALL
),
aged AS (
    SELECT
        run,
        epoch,
        policy,
        max(lag) AS lag,
        coalesce(sum(calls) FILTER (lag > 0), 0) / sum(calls) AS share_stale
    FROM staleness
    WHERE mode = 'train'
    GROUP BY ALL
)
SELECT
    policies.run,
    policies.epoch,
    policies.policy,
    policies.version,
    policies.output ->> '$.version' AS trained_version,
    policies.output ->> '$.skipped' AS skipped,
    coalesce(called.calls, 0) AS calls,
    coalesce(called.trainable_calls, 0) AS trainable_calls,
    coalesce(trained.trained_calls, 0) AS trained_calls,
    coalesce(called.response_tokens, 0) AS response_tokens,
    coalesce(derived.sequences, 0) AS sequences,
    returned.mean_return,
    aged.lag,
    aged.share_stale
FROM policies
LEFT JOIN called USING (run, epoch, policy)
LEFT JOIN returned USING (run, epoch, policy)
LEFT JOIN trained USING (run, epoch, policy)
LEFT JOIN derived USING (run, epoch, policy)
LEFT JOIN aged USING (run, epoch, policy)
ORDER BY policies.run, policies.epoch, policies.policy
