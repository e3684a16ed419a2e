-- How each epoch went.
-- Grain: one row per (run, epoch, mode). Inputs: rollouts
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
FROM rollouts
GROUP BY run, epoch, mode
ORDER BY run, epoch, mode
