-- The span that each span declares as its parent.
-- Grain: one row per span; `parent` is NULL if the declared one is missing or uncertain.
-- Inputs: nodes, spans, id_bearers, user_names.
-- Rule: the parent may be anywhere in the attempt, since one run of an agent may come as many traces. If several spans have the declared
-- id (an agent seeds `random`), those of the same trace go first, then those that were open when the child began (an unknown start counts
-- as before everything), then the earliest. If the open ones belong to different agents, as far as declared parents and names tell, none is
-- chosen: weaker evidence places the child. A parent with the child's own id has to begin before it.
-- No pairs are made of spans and children with one id: a child reads off sums over the spans that opened by its start, less those that
-- closed before. n spans belong to one agent if n times the sum of its squared numbers equals the squared sum.
WITH RECURSIVE
doubtful AS MATERIALIZED (
    SELECT child.node, child.attempt, spans.trace_id, id_bearers.span_key, child.start_ns, child.span_key = id_bearers.span_key AS own_id
    FROM nodes AS child
    JOIN id_bearers ON id_bearers.span_key = child.parent_key
    JOIN spans USING (record_offset, record_index)
    WHERE id_bearers.spans > 1
),
members AS MATERIALIZED (
    -- Spans of such attempts; those of one id are a family. `agent` is NULL where it is that of the family above.
    SELECT
        nodes.node,
        family.node AS family,
        above.node AS above,
        CASE
            WHEN coalesce(user_names.agent_name, nodes.agent_name) IS NOT NULL
                THEN (hash(coalesce(user_names.agent_name, nodes.agent_name)) >> 1)::BIGINT
            WHEN nodes.op = 'rollout' OR bool_and(coalesce(user_names.agent_name, nodes.agent_name) IS NULL) OVER same_attempt
                THEN 0
            WHEN above.node IS NULL THEN (hash(nodes.node) >> 1)::BIGINT
        END AS agent
    FROM nodes
    SEMI JOIN doubtful USING (attempt)
    LEFT JOIN user_names USING (node)
    JOIN id_bearers AS family ON family.span_key = nodes.span_key
    LEFT JOIN id_bearers AS above ON above.span_key = nodes.parent_key
    WINDOW same_attempt AS (PARTITION BY nodes.attempt)
),
over_doubtful AS (
    SELECT id_bearers.node AS family FROM id_bearers SEMI JOIN doubtful USING (span_key)
    UNION
    SELECT members.above
    FROM over_doubtful
    JOIN members USING (family)
    WHERE members.agent IS NULL AND members.above IS NOT NULL
),
family_agents AS (
    -- Negative: of several.
    SELECT family, CASE WHEN count(DISTINCT agent) = 1 THEN min(agent) ELSE -family END AS agent
    FROM members
    SEMI JOIN over_doubtful USING (family)
    WHERE agent IS NOT NULL
    GROUP BY family
    UNION
    SELECT inner_one.family, family_agents.agent
    FROM family_agents
    JOIN (
        SELECT DISTINCT family, above FROM members SEMI JOIN over_doubtful USING (family) WHERE agent IS NULL
    ) AS inner_one ON inner_one.above = family_agents.family
),
certain AS (
    SELECT family, min(agent) AS agent FROM family_agents GROUP BY family HAVING count(*) = 1 AND min(agent) >= 0
),
bearers AS MATERIALIZED (
    SELECT
        nodes.node,
        spans.trace_id,
        nodes.span_key,
        coalesce(nodes.start_ns, -1) AS start_ns,
        greatest(coalesce(nodes.end_ns, never_ns()), nodes.start_ns) AS end_ns,
        dense_rank() OVER (ORDER BY coalesce(members.agent, certain.agent, -nodes.node)) AS agent
    FROM nodes
    SEMI JOIN doubtful USING (span_key)
    JOIN members USING (node)
    JOIN spans USING (record_offset, record_index)
    LEFT JOIN certain ON certain.family = members.above
),
scoped AS MATERIALIZED (
    -- In the child's trace, or (NULL trace) in all of the attempt.
    SELECT hash(span_key, trace_id) AS scope, node, start_ns, end_ns, agent FROM bearers
    UNION ALL
    SELECT hash(span_key, NULL), node, start_ns, end_ns, agent FROM bearers
),
scopes AS MATERIALIZED (
    SELECT scope, count(*) AS n, sum(agent) AS s, sum(agent * agent) AS q, arg_min(node, (start_ns, node)) AS earliest
    FROM scoped
    GROUP BY scope
),
opened AS MATERIALIZED (
    SELECT scope, start_ns, count(*) OVER earlier AS n, sum(agent) OVER earlier AS s, sum(agent * agent) OVER earlier AS q
    FROM scoped
    WINDOW earlier AS (PARTITION BY scope ORDER BY start_ns)
),
closed AS MATERIALIZED (
    SELECT scope, end_ns, count(*) OVER earlier AS n, sum(agent) OVER earlier AS s, sum(agent * agent) OVER earlier AS q
    FROM scoped
    WINDOW earlier AS (PARTITION BY scope ORDER BY end_ns)
),
longest AS MATERIALIZED (
    -- Spans that end after all that began before them: the first to be open at a time is one of them.
    SELECT scope, node, end_ns
    FROM scoped
    QUALIFY coalesce(
        end_ns > max(end_ns) OVER (PARTITION BY scope ORDER BY start_ns, node ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        true
    )
),
children AS MATERIALIZED (
    SELECT
        doubtful.node,
        coalesce(doubtful.start_ns, -2) AS start_ns,
        -- The child itself, where it bears the id, is no candidate.
        own_id::BIGINT AS n,
        CASE WHEN own_id THEN self.agent ELSE 0 END AS s,
        CASE WHEN coalesce(in_trace.n, 0) > own_id::BIGINT
            THEN in_trace.scope
            ELSE hash(doubtful.span_key, NULL)
        END AS scope
    FROM doubtful
    LEFT JOIN scopes AS in_trace ON in_trace.scope = hash(doubtful.span_key, doubtful.trace_id)
    LEFT JOIN bearers AS self ON self.node = doubtful.node
),
candidates AS (
    SELECT
        children.node,
        longest.node AS first_open,
        scopes.earliest,
        coalesce(opened.n, 0) - coalesce(closed.n, 0) - children.n AS n,
        coalesce(opened.s, 0) - coalesce(closed.s, 0) - children.s AS s,
        coalesce(opened.q, 0) - coalesce(closed.q, 0) - children.s * children.s AS q,
        scopes.n - children.n AS all_n,
        scopes.s - children.s AS all_s,
        scopes.q - children.s * children.s AS all_q
    FROM children
    JOIN scopes USING (scope)
    ASOF LEFT JOIN opened ON opened.scope = children.scope AND children.start_ns >= opened.start_ns
    ASOF LEFT JOIN closed ON closed.scope = children.scope AND children.start_ns > closed.end_ns
    ASOF LEFT JOIN longest ON longest.scope = children.scope AND children.start_ns <= longest.end_ns
),
chosen AS (
    SELECT
        node,
        CASE
            WHEN n > 0 THEN CASE WHEN n * q = s * s THEN first_open END
            WHEN all_n * all_q = all_s * all_s THEN earliest
        END AS parent
    FROM candidates
)
SELECT
    child.node,
    CASE WHEN id_bearers.spans = 1 THEN nullif(id_bearers.node, child.node) ELSE nullif(chosen.parent, child.node) END AS parent
FROM nodes AS child
LEFT JOIN id_bearers ON id_bearers.span_key = child.parent_key
LEFT JOIN chosen ON chosen.node = child.node
