-- How old the weights were that sampled an epoch's calls.
-- Grain: one row per (run, epoch, mode, policy, policy_version). Inputs: calls, epoch_manifests.
-- Rule: `lag` is the number of the version that the epoch trains (`epoch_version`) minus that of the call: 0 is on policy.
-- A call that ran through a swap names several versions; the oldest counts. NULL if either is not known.
WITH sampled AS (
    SELECT
        run,
        epoch,
        mode,
        policy,
        policy_version,
        count(*) AS calls,
        coalesce(sum(response_tokens), 0)::BIGINT AS response_tokens
    FROM calls
    WHERE policy IS NOT NULL
    GROUP BY ALL
)
SELECT
    sampled.run,
    sampled.epoch,
    sampled.mode,
    sampled.policy,
    sampled.policy_version,
    manifests.versions[sampled.policy] AS epoch_version,
    try_cast(substr(manifests.versions[sampled.policy], 2) AS INTEGER)
        - list_min([try_cast(substr(trim(version), 2) AS INTEGER) FOR version IN string_split(sampled.policy_version, ',')]) AS lag,
    sampled.calls,
    sampled.response_tokens,
    sampled.response_tokens / sampled.calls AS mean_response_tokens,
    sampled.calls / sum(sampled.calls) OVER (PARTITION BY sampled.run, sampled.epoch, sampled.mode, sampled.policy) AS share
FROM sampled
LEFT JOIN epoch_manifests AS manifests
    ON manifests.run = sampled.run AND manifests.epoch = sampled.epoch AND manifests.mode = sampled.mode
ORDER BY sampled.run, sampled.epoch, sampled.mode, sampled.policy, lag, sampled.policy_version
