-- The return of each call that could be trained on: what the call is credited with.
-- Grain: one row per call of judged_calls that is not left out. `agent` and `step` say what it is compared with: the same step of the same agent
-- in the other rollouts of its group. With `assign: final` a whole rollout is one step.
-- Inputs: judged_calls, call_steps, rollout_rewards, bucket, policy_totals, reward_steps, agent_runs, span_agents, reward_settings, policies.
-- Rule: by `assign`. final: the rollout's reward, or this policy's own sum if it names rewards of its own. nearest: the sum of the rewards that the
-- call got. discounted: the sum of the rewards that it and the agent's later calls got, times gamma for each call in between; rewards of one of
-- several overlapping agents of one name go to its own calls alone. If a reward's agent is ambiguous, no call of the attempt has a return
-- (`ambiguous_reward`). If an ambiguous call may be the one that an agent's reward is for, no call of this agent has one.
-- Of n calls: a sum over the first 2k is that over k and, times gamma to the k, that over the k behind them; so log n rounds, not n² pairs.
WITH RECURSIVE trainable AS (
    SELECT
        calls.call_id,
        calls.policy,
        rewards.group_id,
        rewards.rollout_id,
        rewards.attempt_id,
        steps.agent,
        steps.step,
        CASE WHEN policies.own_rewards THEN own.reward ELSE rewards.reward END AS reward
    FROM judged_calls AS calls
    JOIN policies USING (policy)
    -- By `attempt`: one number is joined faster than two texts.
    JOIN (SELECT bucket.attempt, totals.* FROM rollout_rewards AS totals JOIN bucket USING (rollout_id, attempt_id)) AS rewards
        USING (attempt)
    LEFT JOIN policy_totals AS own ON own.policy = calls.policy AND own.attempt = calls.attempt
    LEFT JOIN call_steps AS steps USING (call_id)
    WHERE calls.left_out IS NULL
),
given AS (
    -- `run`: of which agent's run alone; 0: of all of its name. Sorted lists: a sum must not depend on the order of its input.
    SELECT
        steps.call_id,
        CASE WHEN agent_runs.crew IS NULL THEN 0 ELSE agent_runs.node END AS run,
        list_sum(list_sort(list(rewards.value))) AS value
    FROM reward_steps AS rewards
    JOIN call_steps AS steps USING (call_id)
    LEFT JOIN span_agents AS tree ON tree.node = rewards.node AND rewards.source NOT IN ('grader', 'failure')
    LEFT JOIN agent_runs ON agent_runs.node = tree.agent_node AND agent_runs.node = steps.agent_node
    GROUP BY ALL
),
asked AS (
    SELECT *, 0 AS run FROM call_steps
    UNION ALL
    SELECT *, agent_node FROM call_steps WHERE crew IS NOT NULL AND agent_node IS NOT NULL
),
sums AS (
    SELECT
        steps.call_id,
        steps.step,
        steps.run,
        min(steps.call_id) OVER same_agent AS of_agent,
        CASE settings.assign WHEN 'discounted' THEN count(*) OVER same_agent ELSE 1 END AS calls,
        1::BIGINT AS summed,
        coalesce(given.value, 0)::DOUBLE AS total
    FROM asked AS steps
    CROSS JOIN reward_settings AS settings
    LEFT JOIN given ON given.call_id = steps.call_id AND given.run = steps.run
    WINDOW same_agent AS (PARTITION BY steps.policy, steps.rollout_id, steps.attempt_id, steps.agent, steps.run)
    UNION ALL
    SELECT
        call_id,
        step,
        run,
        of_agent,
        calls,
        2 * summed,
        total + coalesce(pow(settings.gamma, summed) * lead(total, summed) OVER (PARTITION BY of_agent, run ORDER BY step), 0)
    FROM sums
    CROSS JOIN reward_settings AS settings
    WHERE summed < calls
),
credited AS (
    -- Of two parts at most.
    SELECT call_id, sum(total) AS total FROM sums WHERE summed >= calls GROUP BY call_id
),
doubtful AS (
    -- A reward that may be any agent's has a row for each.
    SELECT DISTINCT policy, rollout_id, attempt_id, agent FROM reward_steps WHERE left_out IN ('ambiguous_agent', 'ambiguous_call')
)
SELECT
    calls.call_id,
    calls.policy,
    calls.group_id,
    calls.rollout_id,
    calls.attempt_id,
    CASE WHEN settings.assign = 'final' THEN '' ELSE calls.agent END AS agent,
    CASE WHEN settings.assign = 'final' THEN 0 ELSE calls.step END AS step,
    calls.reward,
    CASE WHEN settings.assign = 'final' THEN calls.reward ELSE coalesce(credited.total, 0) END AS return,
    CASE WHEN doubtful.policy IS NOT NULL THEN 'ambiguous_reward' END AS left_out
FROM trainable AS calls
CROSS JOIN reward_settings AS settings
LEFT JOIN credited ON credited.call_id = calls.call_id
LEFT JOIN doubtful
    ON doubtful.policy = calls.policy
    AND doubtful.rollout_id = calls.rollout_id
    AND doubtful.attempt_id = calls.attempt_id
    AND doubtful.agent = calls.agent
ORDER BY calls.call_id
