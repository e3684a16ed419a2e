-- Whether longer answers go with more reward: a policy that learns to talk more shows here first.
-- Grain: one row per (epoch, quarter of the rollouts by sampled tokens) of a run's training. Inputs: rollouts, attempts.
-- Parameters: p_run (default: the newest run that trains), p_epoch (default: all).
-- Quarter 1 has the shortest; `shortest` and `longest` are sampled tokens. `correlation` is between tokens and reward, over
-- the whole epoch.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
quarters AS (
    SELECT
        run,
        epoch,
        reward,
        response_tokens,
        ntile(4) OVER (PARTITION BY epoch ORDER BY response_tokens, rollout_id) AS quarter,
        min(response_tokens) OVER (PARTITION BY epoch) < max(response_tokens) OVER (PARTITION BY epoch)
            AND min(reward) OVER (PARTITION BY epoch) < max(reward) OVER (PARTITION BY epoch) AS varies,
        corr(response_tokens, reward) OVER (PARTITION BY epoch) AS correlation
    FROM rollouts
    JOIN chosen USING (run)
    WHERE mode = 'train' AND state = 'counts' AND (p_epoch IS NULL OR epoch = p_epoch)
)
SELECT
    run,
    epoch,
    quarter,
    min(response_tokens) AS shortest,
    max(response_tokens) AS longest,
    count(*) AS rollouts,
    avg(reward) AS mean_reward,
    any_value(correlation) FILTER (varies) AS correlation
FROM quarters
GROUP BY run, epoch, quarter
ORDER BY epoch, quarter
