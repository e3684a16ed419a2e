-- The trees that ids alone make of an attempt's spans, and where each span is in its own.
-- Grain: one row per span and per missing parent. `top` heads its tree, `depth` counts from there, `parent` is NULL for it;
-- `agent_node` is the nearest named ancestor-or-self whose name differs from that of the one above it (`outer_node`): NULL
-- where nothing in this tree has a name; `confidence` is that of the weakest step from there, or from the top. `broken`: the top was on a cycle.
-- Inputs: reached, broken_cycles.
FROM reached
UNION ALL
FROM broken_cycles
