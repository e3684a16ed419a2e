-- Whether a reply was cut off decides the reward.
-- Grain: one row per (epoch, mode). Parameters: run. Inputs: calls, rollouts.
-- Rule: the correlation between the reward and having a call that ended at the limit of tokens, if enough rollouts have one.
-- Remedy: Give more room (`policies[].sampling.max_tokens`, the agent's own `max_tokens`), or ask for shorter replies; a policy that is only taught not to be cut off learns to be short. `policies[].truncated: drop` trains on none of them, and a rule of `reward.air` with `before_limit` makes the last tokens before the limit dearer by degrees.
-- Evidence: FROM cut_off_responses(p_run := $run)
WITH limits AS (
    SELECT 0.1 AS least_share, -0.6 AS correlation
),
cut AS (
    SELECT rollout_id, attempt_id, bool_or(contains(finish_reasons, '"length"')) AS cut
    FROM calls
    WHERE run = $run AND policy IS NOT NULL AND finish_reasons IS NOT NULL
    GROUP BY ALL
),
compared AS (
    SELECT
        epoch,
        mode,
        avg(cut::INTEGER) AS share,
        avg(reward) FILTER (cut) AS reward_cut,
        avg(reward) FILTER (NOT cut) AS reward_whole,
        CASE WHEN min(reward) < max(reward) AND bool_or(cut) AND NOT bool_and(cut) THEN corr(cut::INTEGER, reward) END AS correlation
    FROM rollouts
    JOIN cut USING (rollout_id, attempt_id)
    WHERE run = $run AND state = 'counts' AND reward IS NOT NULL
    GROUP BY ALL
)
SELECT
    epoch,
    mode,
    NULL::VARCHAR AS policy,
    'warning' AS severity,
    format(
        '{:.0f}% of the rollouts were cut off and got {:.2f}, the others {:.2f} (correlation {:.2f})',
        100 * share, reward_cut, reward_whole, compared.correlation
    ) AS what
FROM compared
CROSS JOIN limits
WHERE share >= least_share AND compared.correlation <= limits.correlation
