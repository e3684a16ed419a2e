-- When agents ran, as intervals in which to look for spans.
-- Grain: one row per (level, id). Level 1: an agent span. Level 2: overlapping spans of one name inside one agent, taken together
-- (`id` is the first of them), in attempts that have some. Level 0: the time that the agents inside one agent cover, used to count
-- how many innermost agents hold a span.
-- Inputs: agent_spans, waiting, outer_work.
-- Rule: an agent runs as long as the agents inside it; one without end runs on. So an agent that holds a span is held, with it, by
-- all agents around it. `up` is the time around this one, `depth` the number of times up to the outermost; `kin` is one number for
-- all spans of one name inside one agent, `up_kin` that of the time around. `contested`: an agent around it is known to work at the
-- same time.
WITH RECURSIVE
agents AS MATERIALIZED (
    SELECT inner_one.node, inner_one.attempt, outer_one.node AS up, inner_one.start_ns, inner_one.end_ns, hash(coalesce(outer_one.node, 0), inner_one.agent)::HUGEINT AS kin
    FROM agent_spans AS inner_one
    SEMI JOIN waiting USING (attempt)
    LEFT JOIN agent_spans AS outer_one ON outer_one.node = inner_one.outer_node AND outer_one.runs
    WHERE inner_one.runs
),
stretched AS (
    SELECT node, start_ns, end_ns FROM agents
    UNION
    SELECT around.node, least(stretched.start_ns, around.start_ns), greatest(stretched.end_ns, around.end_ns)
    FROM stretched
    JOIN agents USING (node)
    JOIN agents AS around ON around.node = agents.up
    WHERE stretched.start_ns < around.start_ns OR stretched.end_ns > around.end_ns
),
hulls AS (
    SELECT node, min(start_ns) AS start_ns, max(end_ns) AS end_ns FROM stretched GROUP BY node
),
levels AS (
    SELECT node, 1 AS depth, false AS contested FROM agents WHERE up IS NULL
    UNION ALL
    SELECT agents.node, levels.depth + 1, levels.contested OR agents.node IN (SELECT node FROM outer_work)
    FROM levels
    JOIN agents ON agents.up = levels.node
),
runs AS MATERIALIZED (
    SELECT agents.node, agents.attempt, agents.up, agents.kin, levels.depth, levels.contested, hulls.start_ns, hulls.end_ns
    FROM agents
    JOIN hulls USING (node)
    JOIN levels USING (node)
),
breaks AS (
    SELECT
        *,
        coalesce(start_ns > max(end_ns) OVER (same_kin ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true) AS begins_group,
        coalesce(start_ns > max(end_ns) OVER (same_agent ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true) AS begins_cover
    FROM runs
    WINDOW
        same_kin AS (PARTITION BY attempt, kin ORDER BY start_ns, end_ns, node),
        same_agent AS (PARTITION BY attempt, up ORDER BY start_ns, end_ns, node)
),
grouped AS (
    SELECT
        *,
        count_if(begins_group) OVER (PARTITION BY attempt, kin ORDER BY start_ns, end_ns, node ROWS UNBOUNDED PRECEDING) AS group_number,
        count_if(begins_cover) OVER (PARTITION BY attempt, up ORDER BY start_ns, end_ns, node ROWS UNBOUNDED PRECEDING) AS cover_number
    FROM breaks
),
members AS MATERIALIZED (
    SELECT *, min(node) OVER (PARTITION BY attempt, kin, group_number) AS group_id FROM grouped
),
nested AS MATERIALIZED (
    SELECT members.*, around.group_id AS up_group, around.kin AS up_kin
    FROM members
    LEFT JOIN members AS around ON around.node = members.up
)
SELECT 1 AS level, attempt, node AS id, up, depth, start_ns, end_ns, kin, up_kin, contested FROM nested
UNION ALL
SELECT 2, attempt, group_id, min(up_group), min(depth), min(start_ns), max(end_ns), min(kin), min(up_kin), bool_or(contested)
FROM nested
SEMI JOIN (SELECT attempt FROM nested WHERE NOT begins_group) AS crowded USING (attempt)
GROUP BY attempt, group_id
UNION ALL
SELECT 0, attempt, min(node), up, NULL, min(start_ns), max(end_ns), NULL, NULL, false
FROM nested
WHERE up IS NOT NULL
GROUP BY attempt, up, cover_number
