-- The parent that each span declares, found.
-- Grain: one row per span whose declared parent is there and known. Inputs: looked_for.
SELECT node, parent FROM looked_for WHERE parent IS NOT NULL
