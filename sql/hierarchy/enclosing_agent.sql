-- The agent of each waiting span, by time.
-- Grain: one row per waiting span that lies in the time of at least one agent, as in `holding_agent`. Inputs: holding_agent, calls_at_once.
-- Rule: the agent whose time holds the span; for two calls at once inside another agent, neither is certain.
SELECT
    holding_agent.* REPLACE (
        CASE WHEN calls_at_once.node IS NULL THEN method ELSE 'ambiguous' END AS method,
        CASE WHEN calls_at_once.node IS NULL THEN parent END AS parent,
        CASE WHEN calls_at_once.node IS NULL THEN candidates ELSE 2 END AS candidates
    )
FROM holding_agent
LEFT JOIN calls_at_once USING (node)
