-- Where each tree of `components` hangs, and what its spans inherit there.
-- Grain: one row per tree. `parent` is NULL for the tree of the attempt's root. `agent`, `agent_path` and `ambiguous` apply to its unnamed spans;
-- `agent_node` is that agent's span (NULL if it is not known which of several), `confidence` that of the weakest step from its top up to
-- that agent.
-- Inputs: components, evidence, nodes, missing_parents, names, evident_agent, agent_spans, methods.
-- Rule: the first that applies. A tree `beside` a call hangs where the call does. By a link it hangs under the span linked to: unnamed
-- spans take its agent, but agents do not nest. It hangs under a parent that never came, unless time tells another agent than that
-- parent's. Else time decides (`evident_agent`), else it hangs under the root. Trees that hang on each other in a circle go under the root.
WITH RECURSIVE
tops AS MATERIALIZED (
    SELECT components.node, components.broken, coalesce(nodes.attempt, missing_parents.attempt) AS attempt
    FROM components
    LEFT JOIN nodes USING (node)
    LEFT JOIN missing_parents USING (node)
    WHERE components.node = components.top
),
roots AS MATERIALIZED (
    SELECT nodes.attempt, evidence.node FROM evidence JOIN nodes USING (node) WHERE evidence.method = 'root'
),
beside AS MATERIALIZED (
    -- Few: where the call is that a span shares its place with.
    SELECT evidence.node, components.parent FROM evidence JOIN components ON components.node = evidence.beside
),
placed AS (
    SELECT
        tops.node,
        tops.broken,
        roots.node AS root,
        evidence.method,
        coalesce(evidence.parent, beside.parent) AS parent,
        missing_parents.node AS missing_parent,
        names.node IS NOT NULL AS named,
        evident_agent.* EXCLUDE (node, method, parent),
        evident_agent.method AS time_method,
        evident_agent.parent AS time_parent
    FROM tops
    JOIN roots USING (attempt)
    LEFT JOIN evidence ON evidence.node = tops.node
    LEFT JOIN names ON names.node = tops.node
    LEFT JOIN beside ON beside.node = evidence.node
    LEFT JOIN missing_parents ON missing_parents.span_key = evidence.missing_key
    LEFT JOIN evident_agent AS of_missing ON of_missing.node = missing_parents.node
    LEFT JOIN evident_agent
        ON evident_agent.node = coalesce(evidence.beside, tops.node)
        AND (evident_agent.method, evident_agent.parent, evident_agent.agent) IS DISTINCT FROM (of_missing.method, of_missing.parent, of_missing.agent)
),
hung AS MATERIALIZED (
    SELECT
        node,
        root,
        CASE
            WHEN node = root THEN NULL
            WHEN broken THEN root
            ELSE coalesce(parent, time_parent, missing_parent, root)
        END AS parent,
        CASE
            WHEN node = root THEN 'root'
            WHEN broken THEN 'cycle'
            WHEN node < 0 THEN 'synthesised'
            WHEN method = 'missing_parent' THEN coalesce(time_method, 'missing_parent')
            WHEN method IS NOT NULL THEN method
            WHEN time_method IS NOT NULL THEN time_method
            WHEN named THEN 'own_identity'
            ELSE 'unplaced'
        END AS method,
        coalesce(candidates, 0) AS candidates,
        agent,
        agent_path,
        coalesce(time_method = 'ambiguous', false) AS ambiguous
    FROM placed
),
links AS MATERIALIZED (
    SELECT
        hung.*,
        CASE WHEN hung.ambiguous THEN 0.0 ELSE methods.confidence END::DOUBLE AS confidence,
        above.confidence AS parent_confidence,
        above.top AS parent_top,
        above.depth AS parent_depth,
        above.agent_node AS parent_agent_node,
        agents.agent AS parent_agent,
        agents.agent_path AS parent_path,
        agents.outermost AS parent_outermost
    FROM hung
    JOIN methods USING (method)
    JOIN components AS above ON above.node = hung.parent
    LEFT JOIN agent_spans AS agents ON agents.node = above.agent_node
),
walk AS (
    SELECT node, parent, method, candidates, 0 AS depth, agent, NULL::BIGINT AS agent_node, agent_path, ambiguous, 1.0::DOUBLE AS confidence
    FROM hung
    WHERE parent IS NULL
    UNION ALL
    SELECT
        links.node,
        links.parent,
        links.method,
        links.candidates,
        walk.depth + links.parent_depth + 1,
        CASE WHEN NOT links.ambiguous THEN coalesce(links.agent, links.parent_agent, walk.agent) END,
        CASE
            WHEN links.ambiguous OR links.agent <> links.parent_agent THEN NULL
            WHEN links.agent IS NULL OR links.parent_agent IS NOT NULL THEN coalesce(links.parent_agent_node, walk.agent_node)
        END,
        CASE
            WHEN links.ambiguous THEN NULL
            WHEN links.agent_path IS NOT NULL THEN links.agent_path
            WHEN links.parent_path IS NULL THEN walk.agent_path
            WHEN walk.agent_path IS NULL OR walk.method = 'link' THEN links.parent_path
            WHEN walk.agent = links.parent_outermost THEN walk.agent_path || substr(links.parent_path, length(links.parent_outermost) + 1)
            ELSE walk.agent_path || '/' || links.parent_path
        END,
        links.ambiguous OR (walk.ambiguous AND links.parent_agent IS NULL AND links.agent IS NULL),
        CASE
            WHEN links.agent IS NOT NULL THEN links.confidence
            WHEN links.parent_agent IS NOT NULL THEN least(links.confidence, links.parent_confidence)
            ELSE least(links.confidence, links.parent_confidence, walk.confidence)
        END
    FROM walk
    JOIN links ON links.parent_top = walk.node
)
FROM walk
UNION ALL
SELECT node, root, CASE WHEN node < 0 THEN 'synthesised' ELSE 'cycle' END, 0, 1, NULL, NULL, NULL, false, 0.3
FROM hung
ANTI JOIN walk USING (node)
