-- Each span's parent, as far as ids tell it.
-- Grain: one row per span whose parent is known by an id. Inputs: nodes, declared, evidence, missing_parents.
-- Rule: a link is no edge. It tells who sent a message, not who called whom: agents that write to each other in turn are
-- not nested.
SELECT node, parent FROM declared ANTI JOIN evidence USING (node)
UNION ALL
SELECT node, parent FROM evidence WHERE parent IS NOT NULL AND method <> 'link'
UNION ALL
SELECT evidence.node, missing_parents.node
FROM evidence
JOIN nodes USING (node)
JOIN missing_parents ON missing_parents.attempt = nodes.attempt AND missing_parents.span_id = evidence.missing_id
WHERE evidence.method = 'missing_parent'
