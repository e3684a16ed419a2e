-- Where each tree of `components` hangs, and what its spans inherit there.
-- Grain: one row per tree. `parent` is NULL for the tree of the attempt's root; `agent`, `agent_path` and `ambiguous` hold
-- for its unnamed spans.
-- Inputs: components, evidence, nodes, missing_parents, names, held_by, agent_spans.
-- Rule: `beside` a call is where the call is; by a link under the span linked to, whose agent unnamed spans then share,
-- but agents do not nest; else by time (`held_by`), else under the root. Trees that hang on each other in a circle go
-- under the root.
WITH RECURSIVE
tops AS MATERIALIZED (
    SELECT components.node, components.broken, coalesce(nodes.attempt, missing_parents.attempt) AS attempt
    FROM components
    LEFT JOIN nodes USING (node)
    LEFT JOIN missing_parents USING (node)
    WHERE components.node = components.top
),
roots AS (
    SELECT nodes.attempt, evidence.node FROM evidence JOIN nodes USING (node) WHERE evidence.method = 'root'
),
hung AS MATERIALIZED (
    SELECT
        tops.node,
        roots.node AS root,
        CASE
            WHEN tops.node = roots.node THEN NULL
            WHEN tops.broken THEN roots.node
            ELSE coalesce(evidence.parent, beside.parent, held_by.parent, roots.node)
        END AS parent,
        CASE
            WHEN tops.node = roots.node THEN 'root'
            WHEN tops.broken THEN 'cycle'
            WHEN tops.node < 0 THEN 'synthesised'
            WHEN evidence.beside IS NOT NULL OR evidence.method = 'link' THEN evidence.method
            WHEN held_by.node IS NOT NULL THEN held_by.method
            WHEN names.node IS NOT NULL THEN 'own_identity'
            ELSE 'unplaced'
        END AS method,
        coalesce(held_by.candidates, 0) AS candidates,
        held_by.agent,
        held_by.agent_path,
        coalesce(held_by.method = 'ambiguous', false) AS ambiguous
    FROM tops
    JOIN roots USING (attempt)
    LEFT JOIN evidence ON evidence.node = tops.node
    LEFT JOIN names ON names.node = tops.node
    LEFT JOIN components AS beside ON beside.node = evidence.beside
    LEFT JOIN held_by ON held_by.node = coalesce(evidence.beside, tops.node)
),
links AS MATERIALIZED (
    SELECT
        hung.*,
        above.top AS parent_top,
        above.depth AS parent_depth,
        agents.agent AS parent_agent,
        agents.agent_path AS parent_path,
        agents.outermost AS parent_outermost
    FROM hung
    JOIN components AS above ON above.node = hung.parent
    LEFT JOIN agent_spans AS agents ON agents.node = above.agent_node
),
walk AS (
    SELECT node, parent, method, candidates, 0 AS depth, agent, agent_path, ambiguous FROM hung WHERE parent IS NULL
    UNION ALL
    SELECT
        links.node,
        links.parent,
        links.method,
        links.candidates,
        walk.depth + links.parent_depth + 1,
        coalesce(links.agent, links.parent_agent, walk.agent),
        coalesce(links.agent_path, CASE
            WHEN links.parent_path IS NULL THEN walk.agent_path
            WHEN walk.agent_path IS NULL OR walk.method = 'link' THEN links.parent_path
            WHEN walk.agent = links.parent_outermost THEN walk.agent_path || substr(links.parent_path, length(links.parent_outermost) + 1)
            ELSE walk.agent_path || '/' || links.parent_path
        END),
        links.ambiguous OR (walk.ambiguous AND links.parent_agent IS NULL AND links.agent IS NULL)
    FROM walk
    JOIN links ON links.parent_top = walk.node
)
FROM walk
UNION ALL
SELECT node, root, 'cycle', 0, 1, NULL, NULL, false
FROM hung
ANTI JOIN walk USING (node)
