-- The agents of calls right under a root. Such a call keeps its declared parent, but the parent (a session, a request) is no agent.
-- Grain: one row per such call for which time or its prompt tells an agent (also `ambiguous`). `agent_node`: the agent's span; NULL if it is
-- not known which of several.
-- Inputs: evident_agent, placements, agent_spans, methods.
SELECT
    evident_agent.node,
    evident_agent.method,
    evident_agent.candidates,
    methods.confidence::DOUBLE AS confidence,
    coalesce(evident_agent.agent, agent_spans.agent) AS agent,
    CASE WHEN coalesce(evident_agent.agent = agent_spans.agent, evident_agent.agent IS NULL) THEN evident_agent.parent END AS agent_node,
    coalesce(evident_agent.agent_path, agent_spans.agent_path) AS agent_path
FROM evident_agent
-- What heads a tree has a place of its own.
ANTI JOIN placements USING (node)
JOIN methods USING (method)
LEFT JOIN agent_spans ON agent_spans.node = evident_agent.parent
