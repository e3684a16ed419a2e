-- The trees of `components` that contain agents, themselves or in trees that hang on them.
-- Grain: one row per such tree. Inputs: agent_spans, hooks.
WITH RECURSIVE holding AS (
    SELECT top FROM agent_spans WHERE runs
    UNION
    SELECT hooks.onto FROM holding JOIN hooks USING (top)
)
FROM holding
