-- Each span's parent, as far as ids tell it.
-- Grain: one row per span whose parent is in the attempt and known by an id; `confidence` is that of the method.
-- Inputs: declared, evidence, methods.
-- Rule: a link is no edge. It tells who sent a message, not who called whom: agents that write to each other in turn are not nested.
SELECT node, parent, 1.0::DOUBLE AS confidence FROM declared ANTI JOIN evidence USING (node)
UNION ALL
SELECT evidence.node, evidence.parent, methods.confidence::DOUBLE
FROM evidence
JOIN methods USING (method)
WHERE evidence.parent IS NOT NULL AND evidence.method <> 'link'
