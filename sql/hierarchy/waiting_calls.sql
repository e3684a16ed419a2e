-- The calls in each tree that waits for a place, and their prompts: all spans of one tree belong to one agent.
-- Grain: one row per waiting span or missing parent with calls in it. `prompt_key` is NULL if they have none, or several; `call` is NULL if
-- it is not exactly one call.
-- Inputs: waiting, components, evidence, missing_parents, nodes, llm_twins, prompt_keys.
WITH members AS (
    SELECT waiting.node, components.node AS call FROM waiting JOIN components ON components.top = waiting.node
    UNION ALL
    SELECT waiting.node, waiting.node FROM waiting JOIN components USING (node) WHERE components.node <> components.top
    UNION ALL
    -- What lost its parent goes where that goes.
    SELECT missing_parents.node, components.node
    FROM evidence
    JOIN missing_parents ON missing_parents.span_key = evidence.missing_key
    SEMI JOIN waiting ON waiting.node = missing_parents.node
    JOIN components ON components.top = evidence.node
    WHERE evidence.method = 'missing_parent'
)
SELECT
    members.node,
    nodes.attempt,
    CASE WHEN count(*) = 1 THEN min(members.call) END AS call,
    CASE WHEN min(prompt_keys.prompt_key) = max(prompt_keys.prompt_key) THEN min(prompt_keys.prompt_key) END AS prompt_key
FROM members
JOIN nodes ON nodes.node = members.call AND nodes.op = 'llm'
ANTI JOIN llm_twins ON llm_twins.node = members.call
LEFT JOIN prompt_keys ON prompt_keys.node = members.call
GROUP BY members.node, nodes.attempt
