-- The trees of `components` that ids attach to another tree without making an edge.
-- Grain: one row per such tree; `onto` is the top of the tree that it hangs on. Inputs: components, evidence, missing_parents.
-- Rule: it hangs beside a call, by a link, or under a parent that never came.
SELECT evidence.node AS top, target.top AS onto
FROM evidence
JOIN components AS target ON target.node = coalesce(evidence.beside, evidence.parent)
WHERE evidence.beside IS NOT NULL OR evidence.method = 'link'
UNION ALL
SELECT evidence.node, missing_parents.node
FROM evidence
JOIN missing_parents ON missing_parents.span_key = evidence.missing_key
WHERE evidence.method = 'missing_parent'
