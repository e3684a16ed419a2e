-- The trees that ids alone make of an attempt's spans, and the place of each span in its tree.
-- Grain: one row per span and per missing parent. `top` heads its tree, `depth` counts from there, `parent` is NULL for the top.
-- `agent_node` is the nearest named ancestor-or-self whose name differs from that of the named span above it (`outer_node`); NULL if
-- nothing in this tree has a name. `confidence` is that of the weakest step from `agent_node`, or from the top. `broken`: the top was
-- part of a circle.
-- Inputs: reached, broken_cycles.
FROM reached
UNION ALL
FROM broken_cycles
