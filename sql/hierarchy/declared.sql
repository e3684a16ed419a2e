-- The parent that each span declares, found.
-- Grain: one row per span whose declared parent is there and known. Inputs: declared_parent.
SELECT node, parent FROM declared_parent WHERE parent IS NOT NULL
