-- Attempts in which a span never came that may have been an agent's: whose time it was, nobody knows.
-- Grain: one row per such attempt. Inputs: orphans, nodes, names.
-- Rule: a parent that spans declare and nobody sent, unless one of them names its agent itself, or it is only the client's span
-- around one call to the gateway.
SELECT DISTINCT attempt
FROM (
    SELECT orphans.attempt
    FROM orphans
    JOIN nodes AS child USING (node)
    ANTI JOIN nodes AS above ON above.span_key = orphans.parent_key
    LEFT JOIN names USING (node)
    WHERE orphans.parent_key IS NOT NULL
    GROUP BY orphans.attempt, orphans.parent_key
    HAVING count(names.node) = 0 AND (count(*) > 1 OR bool_or(child.policy IS NULL))
)
