-- Where the text of a call, sent back as history, was tokenized differently than it was sampled.
-- Grain: one row per (run, epoch, policy, agent) with a call that has a history. Inputs: stored.merges, stored.policy_calls.
-- Rule: of the calls that come after another of their policy in an attempt, `drifted` repeat its text with other token ids (`token_drift`), so a
-- new sequence begins. `first_position`: the smallest token position at which that happened; `drifted_tokens`: sampled tokens that came back
-- differently. Empty if no epoch was derived.
SELECT
    merges.run,
    merges.epoch,
    calls.policy,
    calls.agent,
    count(*) AS calls,
    count(*) FILTER (merges.reason = 'token_drift') AS drifted,
    count(*) FILTER (merges.reason = 'token_drift') / count(*) AS share,
    min(merges.drift_position) AS first_position,
    median(merges.drift_position) AS median_position,
    coalesce(sum(merges.drift_tokens), 0)::BIGINT AS drifted_tokens
FROM stored.merges
JOIN stored.policy_calls AS calls
    ON calls.run = merges.run AND calls.epoch = merges.epoch AND calls.call_id = merges.call_id
WHERE merges.reason NOT IN ('first_call', 'per_call')
GROUP BY ALL
ORDER BY merges.run, merges.epoch, calls.policy, calls.agent
