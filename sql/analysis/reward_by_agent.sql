-- Which agents' work goes with reward: compares rollouts in which an agent made calls with those in which it made none.
-- Grain: one row per (epoch, agent) of a run's training. Inputs: calls, rollouts, attempts.
-- Parameters: p_run (default: the newest run that trains), p_epoch (default: all).
-- `correlation` is between the number of an agent's calls in a rollout and the rollout's reward.
WITH chosen AS (
    SELECT run
    FROM attempts
    WHERE mode = 'train' AND (p_run IS NULL OR run = p_run)
    ORDER BY started DESC
    LIMIT 1
),
counted AS (
    SELECT rollouts.run, rollouts.epoch, rollouts.rollout_id, rollouts.attempt_id, rollouts.reward
    FROM rollouts
    JOIN chosen USING (run)
    WHERE rollouts.mode = 'train' AND rollouts.state = 'counts' AND (p_epoch IS NULL OR rollouts.epoch = p_epoch)
),
called AS (
    SELECT rollout_id, attempt_id, agent, count(*) AS calls
    FROM calls
    WHERE twin_of IS NULL
    GROUP BY ALL
),
present AS (
    SELECT DISTINCT counted.epoch, called.agent FROM counted JOIN called USING (rollout_id, attempt_id)
),
pairs AS (
    SELECT counted.run, counted.epoch, present.agent, counted.reward, coalesce(called.calls, 0) AS calls
    FROM counted
    JOIN present USING (epoch)
    LEFT JOIN called
        ON called.rollout_id = counted.rollout_id
        AND called.attempt_id = counted.attempt_id
        AND called.agent IS NOT DISTINCT FROM present.agent
)
SELECT
    run,
    epoch,
    agent,
    count(*) FILTER (calls > 0) AS rollouts_with,
    avg(reward) FILTER (calls > 0) AS mean_reward_with,
    count(*) FILTER (calls = 0) AS rollouts_without,
    avg(reward) FILTER (calls = 0) AS mean_reward_without,
    avg(calls) AS calls_a_rollout,
    CASE WHEN max(calls) > min(calls) AND max(reward) > min(reward) THEN corr(calls, reward) END AS correlation
FROM pairs
GROUP BY run, epoch, agent
ORDER BY epoch, agent
