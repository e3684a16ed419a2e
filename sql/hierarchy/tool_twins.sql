-- Tool calls that were recorded twice, for example by two instrumentations.
-- Grain: one row per span that is a further record of a tool call; `kept` is the first. Inputs: nodes, declared, outer_records.
-- Rule: a tool span inside a tool span (another span may lie between) is the same call, unless both have names, or ids, that differ; of
-- several inside one, the first is. Spans with one tool call id, without two different names, are one call if they begin before the first
-- of them ends.
WITH RECURSIVE
tools AS NOT MATERIALIZED (
    SELECT node, tool_name, tool_call_key, start_ns, coalesce(end_ns, start_ns) AS end_ns
    FROM nodes
    WHERE op = 'tool'
),
inner_ones AS MATERIALIZED (
    SELECT declared.node, declared.parent, above.op
    FROM declared
    JOIN outer_records AS above ON above.node = declared.parent AND above.op <> 'llm'
),
enclosing AS MATERIALIZED (
    SELECT node, parent AS outer_node FROM inner_ones WHERE op = 'tool'
    UNION ALL
    SELECT inner_ones.node, higher.parent
    FROM inner_ones
    JOIN declared AS higher ON higher.node = inner_ones.parent
    WHERE inner_ones.op = 'other'
),
nested AS (
    SELECT min(inside.node) AS node, outside.node AS other
    FROM enclosing
    JOIN tools AS inside ON inside.node = enclosing.node
    JOIN tools AS outside ON outside.node = enclosing.outer_node
    WHERE coalesce(inside.tool_name = outside.tool_name, true) AND coalesce(inside.tool_call_key = outside.tool_call_key, true)
    GROUP BY outside.node
),
shared AS MATERIALIZED (
    SELECT tool_call_key FROM nodes WHERE tool_call_key IS NOT NULL GROUP BY tool_call_key HAVING count(*) > 1
),
of_one_id AS MATERIALIZED (
    SELECT tools.*, min(node) OVER (PARTITION BY tool_call_key) AS first FROM tools SEMI JOIN shared USING (tool_call_key)
),
same_id AS (
    SELECT this.node, first_one.node AS other
    FROM of_one_id AS this
    JOIN of_one_id AS first_one ON first_one.node = this.first
    WHERE this.node <> first_one.node
        AND this.start_ns <= first_one.end_ns
        AND coalesce(this.tool_name = first_one.tool_name, true)
),
linked AS MATERIALIZED (
    FROM nested
    UNION
    FROM same_id
),
together AS (
    SELECT node, node AS member FROM (SELECT node FROM linked UNION SELECT other FROM linked)
    UNION
    SELECT together.node, linked.other
    FROM together
    JOIN (FROM linked UNION SELECT other, node FROM linked) AS linked ON linked.node = together.member
)
SELECT node, min(member) AS kept FROM together GROUP BY node HAVING node <> min(member)
ORDER BY node
