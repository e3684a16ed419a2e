-- The parent that each span declares, found.
-- Grain: one row per span whose declared parent is there. Inputs: nodes.
-- Rule: looked for in the whole attempt, since one run of an agent comes as many traces. Where several spans bear the id:
-- of the same trace first, then one that was open when the child began, then the earliest. No span is its own parent.
WITH found AS MATERIALIZED (
    SELECT child.node, parent.node AS parent
    FROM nodes AS child
    JOIN nodes AS parent
        ON parent.attempt = child.attempt AND parent.span_id = child.parent_span_id AND parent.node <> child.node
),
doubtful AS (
    SELECT node FROM found GROUP BY node HAVING count(*) > 1
),
chosen AS (
    SELECT
        node,
        min_by(found.parent, (
            parent.trace_id <> child.trace_id,
            coalesce(child.start_ns NOT BETWEEN parent.start_ns AND coalesce(parent.end_ns, child.start_ns), true),
            parent.node
        )) AS parent
    FROM found
    SEMI JOIN doubtful USING (node)
    JOIN nodes AS child USING (node)
    JOIN nodes AS parent ON parent.node = found.parent
    GROUP BY node
)
SELECT node, parent FROM found ANTI JOIN doubtful USING (node)
UNION ALL
SELECT node, parent FROM chosen
