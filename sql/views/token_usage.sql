-- Who used how many tokens.
-- Grain: one row per (run, epoch, mode, agent, policy, policy_version, model). Inputs: calls.
-- Rule: the gateway's counts, or the instrumentation's for calls that did not come through it; a call that was recorded twice is counted once.
-- `uncounted` calls do not report their tokens. `share` is of the response tokens of the epoch and mode.
WITH used AS (
    SELECT
        run,
        epoch,
        mode,
        agent,
        policy,
        policy_version,
        CASE WHEN policy IS NULL THEN model END AS model,
        count(*) AS calls,
        count(*) FILTER (prompt_tokens IS NULL AND response_tokens IS NULL) AS uncounted,
        coalesce(sum(prompt_tokens), 0)::BIGINT AS prompt_tokens,
        coalesce(sum(response_tokens), 0)::BIGINT AS response_tokens
    FROM calls
    WHERE twin_of IS NULL
    GROUP BY ALL
)
SELECT *, response_tokens / nullif(sum(response_tokens) OVER (PARTITION BY run, epoch, mode), 0) AS share
FROM used
ORDER BY run, epoch, mode, response_tokens DESC, agent, policy, policy_version, model
