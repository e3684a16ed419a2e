-- How each epoch went, over the attempts that count (of each rollout the earliest that the infrastructure did not break).
-- Grain: one row per (run, epoch, mode). `mean_reward` is as emitted: failure_reward is in `rollout_rewards` only.
-- Inputs: rollouts
WITH counting AS (
    SELECT DISTINCT ON (rollout_id) *
    FROM rollouts
    WHERE outcome <> 'infrastructure'
    ORDER BY rollout_id, ended, attempt_id
)
SELECT
    run,
    epoch,
    mode,
    count(*) AS rollouts,
    count(*) FILTER (WHERE outcome = 'ok') AS ok,
    count(*) FILTER (WHERE outcome IN ('error', 'timeout')) AS failed,
    avg(reward) AS mean_reward,
    sum(calls)::BIGINT AS calls,
    sum(output_tokens)::BIGINT AS output_tokens,
    avg(seconds) AS mean_seconds
FROM counting
GROUP BY run, epoch, mode
ORDER BY run, epoch, mode
