-- What sql/hierarchy/waiting.sql says, said in pairs: every span with all around it in its tree, every tree with all that it hangs on.
-- Grain, inputs and rule: those of that file.
WITH RECURSIVE
timed AS (
    SELECT
        nodes.node,
        nodes.attempt,
        coalesce(start_ns, end_ns) - coalesce(clocks.ahead_ns, 0) AS start_ns,
        greatest(end_ns, start_ns) - coalesce(clocks.ahead_ns, 0) AS end_ns
    FROM nodes
    LEFT JOIN clocks ON clocks.attempt = nodes.attempt AND nodes.policy IS NOT NULL
    UNION ALL
    SELECT node, attempt, start_ns, end_ns FROM missing_parents
),
around AS (
    -- `by_clients`: nothing but clients' spans lies between.
    SELECT node, parent AS above, true AS by_clients FROM components WHERE parent IS NOT NULL
    UNION ALL
    SELECT around.node, components.parent, around.by_clients AND coalesce(nodes.op IN ('llm', 'other'), false)
    FROM around
    JOIN components ON components.node = around.above
    LEFT JOIN nodes ON nodes.node = around.above
    WHERE components.parent IS NOT NULL
),
hanging AS (
    SELECT top, top AS onto FROM components
    UNION
    SELECT hanging.top, hooks.onto FROM hanging JOIN hooks ON hooks.top = hanging.onto
),
holding AS (
    SELECT DISTINCT onto AS top FROM hanging WHERE top IN (SELECT top FROM agent_spans WHERE runs)
),
roots AS (
    SELECT node FROM evidence WHERE method = 'root'
)
SELECT timed.*
FROM timed
JOIN components USING (node)
LEFT JOIN evidence USING (node)
LEFT JOIN nodes USING (node)
LEFT JOIN missing_parents USING (node)
WHERE timed.start_ns IS NOT NULL
    AND timed.attempt IN (SELECT attempt FROM agent_spans WHERE runs)
    AND CASE
        WHEN components.node = components.top
            THEN NOT components.broken
                AND components.node NOT IN (FROM holding)
                AND CASE
                    WHEN missing_parents.node IS NOT NULL THEN NOT missing_parents.named
                    ELSE coalesce(evidence.method, CASE WHEN evidence.node IS NOT NULL THEN 'missing_parent' END) = 'missing_parent' AND timed.node NOT IN (SELECT node FROM names)
                END
        ELSE nodes.op = 'llm'
            AND components.agent_node IS NULL
            AND components.depth <= 8
            AND (components.top IN (FROM holding) OR components.top IN (FROM roots))
            AND EXISTS (
                FROM around
                JOIN components AS it ON it.node = around.above
                WHERE around.node = timed.node AND around.by_clients AND (it.node = it.top OR it.parent IN (FROM roots))
            )
    END
