-- Which agent uses the tokens, and what reward they bring.
-- Grain: one row per (epoch, mode, agent) of a run. Inputs: calls, rollouts, attempts.
-- Parameters: p_run (default: the newest run), p_epoch (default: all).
-- `reward_a_1000_tokens`: mean reward of the rollouts it acted in, per 1000 tokens that it sampled in one.
WITH chosen AS (
    SELECT run FROM attempts WHERE p_run IS NULL OR run = p_run ORDER BY started DESC LIMIT 1
),
used AS (
    SELECT
        calls.run,
        calls.epoch,
        calls.mode,
        calls.agent,
        rollouts.rollout_id,
        any_value(rollouts.reward) AS reward,
        count(*) AS calls,
        coalesce(sum(calls.prompt_tokens), 0) AS prompt_tokens,
        coalesce(sum(calls.response_tokens), 0) AS response_tokens
    FROM calls
    JOIN chosen USING (run)
    JOIN rollouts ON rollouts.rollout_id = calls.rollout_id AND rollouts.attempt_id = calls.attempt_id
    WHERE calls.twin_of IS NULL AND rollouts.state = 'counts' AND (p_epoch IS NULL OR calls.epoch = p_epoch)
    GROUP BY ALL
),
agents AS (
    SELECT
        run,
        epoch,
        mode,
        agent,
        count(*) AS rollouts,
        sum(calls)::BIGINT AS calls,
        sum(prompt_tokens)::BIGINT AS prompt_tokens,
        sum(response_tokens)::BIGINT AS response_tokens,
        avg(reward) AS mean_reward
    FROM used
    GROUP BY run, epoch, mode, agent
)
SELECT
    run,
    epoch,
    mode,
    agent,
    rollouts,
    calls,
    prompt_tokens,
    response_tokens,
    response_tokens / nullif(sum(response_tokens) OVER (PARTITION BY epoch, mode), 0) AS share,
    response_tokens / calls AS response_tokens_a_call,
    mean_reward * 1000 * rollouts / nullif(response_tokens, 0) AS reward_a_1000_tokens
FROM agents
ORDER BY epoch, mode, response_tokens DESC, agent
