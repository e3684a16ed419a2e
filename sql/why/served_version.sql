-- Calls came from other weights than the epoch names: the version served is not the one that was trained.
-- Grain: one row per (epoch, mode, policy, sign). Parameters: run. Inputs: staleness, calls, policy_epochs, signals.
-- Rule: there are four signs.
-- 1. Calls were sampled more than a version behind, or ahead (in an evaluation: by any other version).
-- 2. The model server answered under the name of another version, or of the base while other calls of the policy have an adapter's name.
-- 3. The epoch began with another version than the epoch before trained.
-- 4. The logprobs differ from the trainer's for the same version (`mismatch` of calls that are on policy): equal weights differ only by rounding
-- (bfloat16: 0.014 nats a token). Constrained outputs differ as well.
-- Remedy: Stop and start vLLM, so that it loads the version from disk, and repeat the epoch with `train-epoch --from rollouts`; what was trained on these calls is not worth keeping. Logprobs that differ are expected of structured outputs alone.
-- Evidence: SELECT epoch, mode, policy, policy_version, served_model, count(*) AS calls FROM calls WHERE run = $run AND policy IS NOT NULL GROUP BY ALL ORDER BY ALL
WITH limits AS (
    SELECT 1 AS most_lag, 0.2 AS most_mismatch
),
aged AS (
    SELECT
        epoch,
        mode,
        policy,
        sum(calls)::BIGINT AS calls,
        string_agg(DISTINCT policy_version, ', ' ORDER BY policy_version) AS versions,
        any_value(epoch_version) AS epoch_version
    FROM staleness
    CROSS JOIN limits
    WHERE run = $run AND (lag < 0 OR lag > CASE WHEN mode = 'train' THEN most_lag ELSE 0 END)
    GROUP BY ALL
),
names AS (
    SELECT
        epoch,
        mode,
        policy,
        policy_version,
        served_model,
        regexp_extract(served_model, '@(v\d+)$', 1) AS served,
        bool_or(regexp_matches(served_model, '@v\d+$')) OVER (PARTITION BY policy) AS has_adapters
    FROM calls
    WHERE run = $run AND policy IS NOT NULL AND twin_of IS NULL AND policy_version NOT LIKE '%,%'
),
misnamed AS (
    SELECT epoch, mode, policy, policy_version, served_model, count(*) AS calls
    FROM names
    WHERE CASE WHEN served <> '' THEN served <> policy_version ELSE has_adapters AND policy_version <> 'v0000' END
    GROUP BY ALL
),
begun AS (
    SELECT epoch, policy, version, lag(trained_version) OVER (PARTITION BY policy ORDER BY epoch) AS former
    FROM policy_epochs
    WHERE run = $run
),
measured AS (
    SELECT
        epoch,
        policy,
        max(value) FILTER (signal = 'mismatch') AS mismatch,
        max(value) FILTER (signal = 'version')::INTEGER AS version
    FROM signals
    WHERE run = $run AND mode = 'train'
    GROUP BY ALL
    HAVING coalesce(max(value) FILTER (signal = 'staleness'), 0) = 0
)
SELECT epoch, mode, policy, 'error' AS severity, format('{} calls were sampled by {}; the epoch is about {}', calls, versions, epoch_version) AS what
FROM aged
UNION ALL
SELECT epoch, mode, policy, 'error', format('{} calls of {} were answered by a model named {}', calls, policy_version, served_model)
FROM misnamed
UNION ALL
SELECT epoch, 'train', policy, 'error', format('it began with {}, and the epoch before had trained {}', version, former)
FROM begun
WHERE former <> version
UNION ALL
SELECT
    epoch,
    'train',
    policy,
    'error',
    format('vLLM''s logprobs are {:.2g} nats a token from the trainer''s: other weights than v{:04d} sampled these calls', mismatch, version)
FROM measured
CROSS JOIN limits
WHERE mismatch > most_mismatch
