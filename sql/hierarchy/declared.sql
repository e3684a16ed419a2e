-- The declared parent of each span.
-- Grain: one row per span whose declared parent is in the attempt and certain. Inputs: declared_parent.
SELECT node, parent FROM declared_parent WHERE parent IS NOT NULL
