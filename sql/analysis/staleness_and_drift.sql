-- How old the weights behind each call were, and how often history came back with other tokens.
-- Grain: one row per (epoch, policy) of a run's training. Inputs: staleness, drift, attempts.
-- Parameters: p_run (default: the newest run that trains), p_epoch (default: all).
-- `lag`: versions between a call's weights and those the epoch trains. `drifted`: calls whose history came back as other
-- tokens than were sampled; their sequence breaks there.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
aged AS (
    SELECT
        run,
        epoch,
        policy,
        any_value(epoch_version) AS epoch_version,
        sum(calls)::BIGINT AS calls,
        max(lag) AS largest_lag,
        coalesce(sum(calls) FILTER (lag > 0), 0) / sum(calls) AS share_stale,
        coalesce(sum(calls) FILTER (contains(policy_version, ',')), 0)::BIGINT AS calls_through_a_swap
    FROM staleness
    JOIN chosen USING (run)
    WHERE mode = 'train' AND (p_epoch IS NULL OR epoch = p_epoch)
    GROUP BY run, epoch, policy
),
drifting AS (
    SELECT
        epoch,
        policy,
        sum(calls)::BIGINT AS calls_with_history,
        sum(drifted)::BIGINT AS drifted,
        min(first_position) AS first_position,
        sum(drifted_tokens)::BIGINT AS drifted_tokens
    FROM drift
    JOIN chosen USING (run)
    GROUP BY epoch, policy
)
SELECT
    aged.*,
    drifting.calls_with_history,
    drifting.drifted,
    drifting.drifted / drifting.calls_with_history AS share_drifted,
    drifting.first_position,
    drifting.drifted_tokens
FROM aged
LEFT JOIN drifting USING (epoch, policy)
ORDER BY aged.epoch, aged.policy
