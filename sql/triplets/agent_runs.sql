-- The runs of agents, and which of them overlap a run of the same name: each of those is an agent of its own, and gets the rewards under
-- its own span.
-- Grain: one row per agent span. `crew` is the first run of a set of overlapping runs of that name; NULL if none overlaps. Empty with
-- `assign: final`.
-- Inputs: agent_spans, nodes, reward_settings.
-- Rule: only agent spans are runs; a call, a tool or a client's request that names an agent is none.
WITH runs AS (
    SELECT agent_spans.node, agent_spans.attempt, agent_spans.agent, agent_spans.start_ns, agent_spans.end_ns
    FROM agent_spans
    SEMI JOIN reward_settings ON assign <> 'final'
    JOIN nodes USING (node)
    WHERE agent_spans.runs AND nodes.op IN ('agent', 'chain', 'workflow', 'task')
),
breaks AS (
    SELECT
        *,
        coalesce(
            start_ns > max(end_ns) OVER (
                PARTITION BY attempt, agent ORDER BY start_ns, end_ns, node ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            true
        ) AS begins_crew
    FROM runs
),
numbered AS (
    SELECT
        *,
        count_if(begins_crew) OVER (PARTITION BY attempt, agent ORDER BY start_ns, end_ns, node ROWS UNBOUNDED PRECEDING) AS crew_number
    FROM breaks
)
SELECT node, attempt, agent, start_ns, end_ns, CASE WHEN count(*) OVER crew > 1 THEN min(node) OVER crew END AS crew
FROM numbered
WINDOW crew AS (PARTITION BY attempt, agent, crew_number)
