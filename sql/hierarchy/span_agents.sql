-- The agent of each span; `places` says how its place was found.
-- Grain: one row per span, and one (negative `node`) per declared parent that never came. `placed_by`: the method, for the top of a tree.
-- `agent_node`: the agent's span; NULL if it is not known which of several. `confidence`: that of the weakest step up to the agent.
-- Inputs: components, placements, agent_spans, root_calls.
-- Rule: a span belongs to its nearest named ancestor-or-self. What lies under an `ambiguous` span is ambiguous too, until a span names its
-- agent. A call right under a root keeps its parent, but time or its prompt may tell its agent.
-- A view, because calls and rewards read it for few spans.
SELECT
    components.node,
    coalesce(components.parent, placements.parent) AS parent_node,
    CASE WHEN components.node = components.top THEN placements.method ELSE root_calls.method END AS placed_by,
    CASE WHEN components.node = components.top THEN placements.candidates ELSE coalesce(root_calls.candidates, 0) END AS candidates,
    components.depth + placements.depth AS depth,
    CASE WHEN root_calls.node IS NULL THEN coalesce(agents.agent, placements.agent) ELSE root_calls.agent END AS agent,
    CASE WHEN root_calls.node IS NULL THEN coalesce(components.agent_node, placements.agent_node) ELSE root_calls.agent_node END AS agent_node,
    CASE
        WHEN root_calls.node IS NOT NULL THEN root_calls.agent_path
        WHEN agents.agent_path IS NULL THEN placements.agent_path
        WHEN placements.agent_path IS NULL OR placements.method = 'link' OR starts_with(agents.agent_path, '…') THEN agents.agent_path
        WHEN placements.agent = agents.outermost THEN placements.agent_path || substr(agents.agent_path, length(agents.outermost) + 1)
        ELSE placements.agent_path || '/' || agents.agent_path
    END AS agent_path,
    CASE WHEN root_calls.node IS NULL THEN agents.node IS NULL AND placements.ambiguous ELSE root_calls.method = 'ambiguous' END AS ambiguous,
    CASE
        WHEN root_calls.node IS NOT NULL THEN root_calls.confidence
        WHEN agents.node IS NOT NULL THEN components.confidence
        ELSE least(components.confidence, placements.confidence)
    END AS confidence
FROM components
JOIN placements ON placements.node = components.top
LEFT JOIN agent_spans AS agents ON agents.node = components.agent_node
LEFT JOIN root_calls ON root_calls.node = components.node
