-- The calls of each agent in the order in which they ended: rewards are given to them, and gamma counts them.
-- Grain: one row per call that a policy of the settings sampled and that did not fail; `step` counts from 1 within (policy, attempt, agent).
-- `agent` is '' if it has no name; `agent_node` is the agent's span, NULL if it is not known which of several. `crew`: the set of overlapping
-- agents of that name (`agent_runs`) to which the agent belongs; NULL if there is none. Empty with `assign: final`.
-- Inputs: judged_calls, policies, nodes, span_agents, bucket, agent_runs, reward_settings.
WITH calls AS MATERIALIZED (
    SELECT
        judged_calls.call_id,
        judged_calls.policy,
        judged_calls.attempt,
        coalesce(span_agents.agent, '') AS agent,
        span_agents.agent_node,
        coalesce(nodes.start_ns, nodes.end_ns) AS began_ns,
        coalesce(nodes.end_ns, nodes.start_ns) AS ended_ns
    FROM judged_calls
    JOIN policies USING (policy)
    SEMI JOIN reward_settings ON assign <> 'final'
    JOIN nodes ON nodes.node = judged_calls.call_id
    JOIN span_agents ON span_agents.node = judged_calls.call_id
    WHERE judged_calls.left_out IS DISTINCT FROM 'failed_call'
),
crews AS MATERIALIZED (
    SELECT attempt, agent, crew, min(start_ns) - clock_tolerance_ns() AS start_ns, max(end_ns) AS end_ns
    FROM agent_runs
    WHERE crew IS NOT NULL
    GROUP BY attempt, agent, crew
)
SELECT
    calls.call_id,
    calls.policy,
    bucket.rollout_id,
    bucket.attempt_id,
    calls.agent,
    CASE WHEN agent_runs.node IS NOT NULL OR crews.crew IS NULL OR crews.end_ns < calls.began_ns - clock_tolerance_ns() THEN calls.agent_node END AS agent_node,
    CASE
        WHEN agent_runs.node IS NOT NULL THEN agent_runs.crew
        WHEN crews.end_ns >= calls.began_ns - clock_tolerance_ns() THEN crews.crew
    END AS crew,
    calls.began_ns,
    calls.ended_ns,
    row_number() OVER (PARTITION BY calls.policy, calls.attempt, calls.agent ORDER BY calls.ended_ns, calls.call_id) AS step
FROM calls
JOIN bucket ON bucket.attempt = calls.attempt
LEFT JOIN agent_runs ON agent_runs.node = calls.agent_node
ASOF LEFT JOIN crews
    ON crews.attempt = calls.attempt AND crews.agent = calls.agent AND calls.began_ns >= crews.start_ns
ORDER BY calls.call_id
