-- The calls of each agent in the order they ended: what a reward is given to, and what gamma counts.
-- Grain: one row per call that a policy of the settings sampled and that did not fail; `step` counts from 1 within
-- (policy, attempt, agent). `agent` is '' where there is no name; `agent_node` the agent's span, where the call lies under it by
-- declared parents: it tells agents of one name apart.
-- Empty with `assign: final`. Inputs: policy_calls, policies, components, reward_settings.
SELECT
    calls.call_id,
    calls.policy,
    calls.rollout_id,
    calls.attempt_id,
    coalesce(calls.agent, '') AS agent,
    components.agent_node,
    coalesce(calls.start_ns, calls.end_ns) AS began_ns,
    coalesce(calls.end_ns, calls.start_ns) AS ended_ns,
    row_number() OVER (
        PARTITION BY calls.policy, calls.rollout_id, calls.attempt_id, coalesce(calls.agent, '')
        ORDER BY coalesce(calls.end_ns, calls.start_ns), calls.call_id
    ) AS step
FROM policy_calls AS calls
JOIN policies USING (policy)
CROSS JOIN reward_settings AS settings
LEFT JOIN components ON components.node = calls.call_id
WHERE settings.assign <> 'final' AND calls.left_out IS DISTINCT FROM 'failed_call'
ORDER BY calls.call_id
