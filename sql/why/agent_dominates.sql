-- One agent carries nearly all of a policy's gradient, so the policy learns that agent's part alone.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: policy_calls, call_returns, advantages.
-- Rule: a call carries the absolute advantage times its sampled tokens; only policies that several agents train.
-- Remedy: Give each agent a policy of its own (`agent_match`), or rewards of its own (`policies[].rewards`, `reward.assign: nearest`), so that the others learn as well.
-- Evidence: FROM reward_by_agent(p_run := $run)
WITH limits AS (
    SELECT 0.9 AS most
),
carried AS (
    SELECT
        calls.epoch,
        calls.policy,
        coalesce(calls.agent, '(no name)') AS agent,
        sum(calls.response_tokens) AS tokens,
        sum(abs(advantages.advantage) * calls.response_tokens) AS gradient
    FROM policy_calls AS calls
    JOIN call_returns AS returns USING (run, epoch, call_id)
    JOIN advantages
        ON advantages.run = returns.run
        AND advantages.epoch = returns.epoch
        AND advantages.policy = returns.policy
        AND advantages.rollout_id = returns.rollout_id
        AND advantages.attempt_id = returns.attempt_id
        AND advantages.agent IS NOT DISTINCT FROM returns.agent
        AND advantages.step IS NOT DISTINCT FROM returns.step
    WHERE calls.run = $run AND calls.left_out IS NULL AND advantages.left_out IS NULL
    GROUP BY ALL
),
shares AS (
    SELECT
        *,
        gradient / sum(gradient) OVER (PARTITION BY epoch, policy) AS share,
        tokens / sum(tokens) OVER (PARTITION BY epoch, policy) AS share_of_tokens,
        count(*) OVER (PARTITION BY epoch, policy) AS agents
    FROM carried
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    'warning' AS severity,
    format('{} carries {:.0f}% of the gradient with {:.0f}% of the sampled tokens; {} agents train the policy', agent, 100 * share, 100 * share_of_tokens, agents) AS what
FROM shares
CROSS JOIN limits
WHERE agents > 1 AND share > most
