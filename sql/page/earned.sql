-- Who earned the reward of a rollout: what each agent's calls were credited with, and its share of what the rollout teaches.
-- Grain: one row per (agent, policy), the largest share first. Parameters: run, epoch, rollout_id, attempt_id.
-- Inputs: span_tree, call_returns, advantages, call_advantages, merges, exclusions.
-- Rule: `return` is the mean over its calls that are trained on, `advantage` over their tokens; `share` is its part of the sum of tokens × size of
-- the advantage. `reason`: the first by name for which calls of it are not trained on.
WITH excluded AS (
    SELECT call_id, choice, policy, reason
    FROM exclusions
    WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id AND attempt_id = $attempt_id
),
trained AS (
    SELECT merges.call_id, merges.policy, sum(merges.tokens - merges.prompt_tokens)::BIGINT AS tokens
    FROM merges
    ANTI JOIN excluded USING (call_id, choice)
    WHERE merges.run = $run AND merges.epoch = $epoch AND merges.rollout_id = $rollout_id AND merges.attempt_id = $attempt_id
    GROUP BY merges.call_id, merges.policy
),
called AS (
    SELECT
        calls.agent,
        coalesce(trained.policy, reasons.policy) AS policy,
        trained.tokens,
        CASE WHEN trained.tokens IS NOT NULL THEN returns.return END AS return,
        CASE WHEN trained.tokens IS NOT NULL THEN coalesce(of_tokens.advantage, advantages.advantage) END AS advantage,
        CASE WHEN trained.tokens IS NULL THEN reasons.reason END AS reason
    FROM span_tree AS calls
    LEFT JOIN trained ON trained.call_id = calls.call_id
    LEFT JOIN (FROM call_returns WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id) AS returns ON returns.call_id = calls.call_id
    LEFT JOIN (FROM advantages WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id) AS advantages
        ON advantages.policy = returns.policy
        AND advantages.rollout_id = returns.rollout_id
        AND advantages.attempt_id = returns.attempt_id
        AND advantages.agent IS NOT DISTINCT FROM returns.agent
        AND advantages.step IS NOT DISTINCT FROM returns.step
    LEFT JOIN (
        SELECT call_id, list_avg(flatten(list(advantages ORDER BY choice))) AS advantage
        FROM call_advantages
        WHERE run = $run AND epoch = $epoch AND rollout_id = $rollout_id
        GROUP BY call_id
    ) AS of_tokens
        ON of_tokens.call_id = calls.call_id
    LEFT JOIN (SELECT call_id, min(policy) AS policy, min(reason) AS reason FROM excluded GROUP BY call_id) AS reasons ON reasons.call_id = calls.call_id
    WHERE calls.run = $run
        AND calls.epoch = $epoch
        AND calls.rollout_id = $rollout_id
        AND calls.attempt_id = $attempt_id
        AND calls.op = 'llm'
        AND calls.twin_node IS NULL
)
SELECT
    agent,
    policy,
    count(*) AS calls,
    count(tokens) AS trained_calls,
    coalesce(sum(tokens), 0)::BIGINT AS tokens,
    avg(return) AS return,
    sum(tokens * advantage) / sum(tokens) AS advantage,
    coalesce(sum(tokens * abs(advantage)), 0) / nullif(sum(sum(tokens * abs(advantage))) OVER (), 0) AS share,
    min(reason) AS reason
FROM called
GROUP BY agent, policy
ORDER BY share DESC NULLS LAST, trained_calls DESC, agent, policy
