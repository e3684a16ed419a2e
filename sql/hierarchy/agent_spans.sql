-- The spans at which an agent begins: named spans whose nearest named ancestor has another name, or that have none.
-- Grain: one row per such span. `outer_node` is the agent around it, by ids; `agent_path` goes from the outermost agent to this
-- one. `runs`: its time can hold spans that lost their parent (a call does not hold other calls).
-- Inputs: components, names, nodes.
-- Rule: an unknown start counts as the attempt's, so that this agent's spans are not given to another agent; a span without any
-- time holds nothing. A path has at most 32 names; if agents call each other more deeply, its outer part is `…`.
WITH RECURSIVE
attempts AS (
    SELECT attempt, min(start_ns) AS start_ns FROM nodes GROUP BY attempt
),
beginnings AS MATERIALIZED (
    SELECT
        components.node,
        nodes.attempt,
        components.top,
        components.outer_node,
        names.agent_name AS agent,
        coalesce(nodes.start_ns, least(attempts.start_ns, nodes.end_ns)) AS start_ns,
        CASE WHEN nodes.end_ns IS NULL THEN never_ns() ELSE greatest(nodes.end_ns, nodes.start_ns) END AS end_ns,
        nodes.op <> 'llm' AND coalesce(nodes.start_ns, nodes.end_ns) IS NOT NULL AS runs
    FROM components
    JOIN names USING (node)
    JOIN nodes USING (node)
    JOIN attempts USING (attempt)
    WHERE components.agent_node = components.node
),
paths AS (
    SELECT node, [agent] AS agents, 1 AS depth FROM beginnings WHERE outer_node IS NULL
    UNION ALL
    SELECT beginnings.node, list_append(paths.agents, beginnings.agent)[-32:], paths.depth + 1
    FROM paths
    JOIN beginnings ON beginnings.outer_node = paths.node
)
SELECT
    beginnings.*,
    agents[1] AS outermost,
    CASE WHEN depth > 32 THEN '…/' ELSE '' END || array_to_string(agents, '/') AS agent_path
FROM beginnings
JOIN paths USING (node)
