-- The agent that each span belongs to; `places` says how its place was found.
-- Grain: one row per span, and one (negative `node`) per declared parent that never came. A view: calls and rewards ask for
-- some spans alone. `placed_by`: the method, for the top of a tree.
-- Inputs: components, placements, agent_spans.
-- Rule: a span belongs to the nearest named ancestor-or-self. What lies under an `ambiguous` span is ambiguous too, until
-- a span names its agent. What is declared is not put elsewhere by time: a span whose declared ancestors name no agent up to
-- the root (AgentOps hangs calls under its session) is of no agent, whoever's time holds it.
SELECT
    components.node,
    coalesce(components.parent, placements.parent) AS parent_node,
    CASE WHEN components.node = components.top THEN placements.method END AS placed_by,
    CASE WHEN components.node = components.top THEN placements.candidates ELSE 0 END AS candidates,
    components.depth + placements.depth AS depth,
    coalesce(agents.agent, placements.agent) AS agent,
    CASE
        WHEN agents.agent_path IS NULL THEN placements.agent_path
        WHEN placements.agent_path IS NULL OR placements.method = 'link' OR starts_with(agents.agent_path, '…') THEN agents.agent_path
        WHEN placements.agent = agents.outermost THEN placements.agent_path || substr(agents.agent_path, length(agents.outermost) + 1)
        ELSE placements.agent_path || '/' || agents.agent_path
    END AS agent_path,
    agents.node IS NULL AND placements.ambiguous AS ambiguous
FROM components
JOIN placements ON placements.node = components.top
LEFT JOIN agent_spans AS agents ON agents.node = components.agent_node
