-- The calls of each agent in the order they ended: what a reward is given to, and what gamma counts.
-- Grain: one row per call that a policy of the settings sampled and that did not fail; `step` counts from 1 within
-- (policy, attempt, agent). `agent` is '' where there is no name; `agent_node` the agent's span, where the call lies under it by
-- declared parents: it tells agents of one name apart.
-- Empty with `assign: final`. Inputs: judged_calls, policies, nodes, span_agents, bucket, components, reward_settings.
SELECT
    calls.call_id,
    calls.policy,
    bucket.rollout_id,
    bucket.attempt_id,
    coalesce(span_agents.agent, '') AS agent,
    components.agent_node,
    coalesce(nodes.start_ns, nodes.end_ns) AS began_ns,
    coalesce(nodes.end_ns, nodes.start_ns) AS ended_ns,
    row_number() OVER (
        PARTITION BY calls.policy, calls.attempt, coalesce(span_agents.agent, '')
        ORDER BY coalesce(nodes.end_ns, nodes.start_ns), calls.call_id
    ) AS step
FROM judged_calls AS calls
JOIN policies USING (policy)
JOIN (FROM reward_settings WHERE assign <> 'final') AS settings ON true
JOIN nodes ON nodes.node = calls.call_id
JOIN span_agents ON span_agents.node = calls.call_id
JOIN bucket ON bucket.attempt = calls.attempt
LEFT JOIN components ON components.node = calls.call_id
WHERE calls.left_out IS DISTINCT FROM 'failed_call'
ORDER BY calls.call_id
