-- Which tree each tree of `components` hangs on by ids, in the end: by a link, or beside a call.
-- Grain: one row per tree; `base` is the top of the one that hangs on no other. Trees that hang on each other in a circle
-- are not in it. Inputs: components, evidence.
WITH RECURSIVE
hooks AS MATERIALIZED (
    SELECT evidence.node AS top, target.top AS onto
    FROM evidence
    JOIN components AS target ON target.node = coalesce(evidence.beside, evidence.parent)
    WHERE evidence.beside IS NOT NULL OR evidence.method = 'link'
),
walk AS (
    SELECT node AS top, node AS base FROM components ANTI JOIN hooks ON hooks.top = components.node WHERE node = components.top
    UNION ALL
    SELECT hooks.top, walk.base FROM walk JOIN hooks ON hooks.onto = walk.top
)
FROM walk
