-- Attempts that lost a span which may have been an agent's: that agent's time is not known.
-- Grain: one row per such attempt. Inputs: orphans, nodes, names.
-- Rule: spans declare a parent that nobody sent. It does not count if one of them names its agent itself, or if it is only the client's
-- span around one call to the gateway.
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
