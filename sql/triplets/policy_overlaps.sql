-- Agents that two policies both select: the settings do not say which of the two such an agent's calls are to train.
-- Grain: one row per (agent, pair of policies). Inputs: policy_calls, policies.
-- Rule: only agents that called a policy count. A policy without agent_match selects no agents (`model` alone decides), so it overlaps with none.
WITH agents AS (
    SELECT DISTINCT agent FROM policy_calls SEMI JOIN policies USING (policy) WHERE agent IS NOT NULL
),
selected AS (
    SELECT agents.agent, policies.policy, policies.agent_match
    FROM agents
    CROSS JOIN policies
    WHERE policies.agent_match <> ''
        AND regexp_matches(agents.agent, policies.agent_match)
        AND CASE WHEN policies.agent_exclude IS NULL THEN true ELSE NOT regexp_matches(agents.agent, policies.agent_exclude) END
)
SELECT
    one.agent,
    one.policy,
    one.agent_match,
    other.policy AS other_policy,
    other.agent_match AS other_match
FROM selected AS one
JOIN selected AS other ON other.agent = one.agent AND other.policy > one.policy
ORDER BY ALL
