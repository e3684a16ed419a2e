-- Each span's parent, as far as ids tell it.
-- Grain: one row per span whose parent is there and known by an id. Inputs: declared, evidence.
-- Rule: a link is no edge. It tells who sent a message, not who called whom: agents that write to each other in turn are
-- not nested.
SELECT node, parent FROM declared ANTI JOIN evidence USING (node)
UNION ALL
SELECT node, parent FROM evidence WHERE parent IS NOT NULL AND method <> 'link'
