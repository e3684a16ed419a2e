-- Spans without a parent that link to one other span of the attempt (messages between agents, as AutoGen sends them).
-- Grain: one row per such span; `parent` is the span linked to. Inputs: nodes, spans, declared, orphans, names.
-- Rule: a span takes the agent of the span it links to. The receiver of a message is often another agent, so the link counts only if that
-- agent's time holds the span (50 ms are tolerated); else time decides. If the span linked to has no agent, the link counts under the
-- attempt's root, or in an attempt without named agents.
WITH RECURSIVE
links AS (
    SELECT nodes.node, nodes.attempt, nodes.start_ns, nodes.end_ns, unnest(json_extract_string(spans.links, '$[*].span_id')) AS span_id
    FROM orphans
    JOIN spans USING (record_offset, record_index)
    JOIN nodes USING (node)
    WHERE spans.links IS NOT NULL AND orphans.op <> 'rollout'
),
single AS MATERIALIZED (
    SELECT
        links.node,
        links.attempt,
        min(target.node) AS parent,
        coalesce(min(links.start_ns), min(links.end_ns)) AS start_ns,
        greatest(min(links.start_ns), min(links.end_ns)) AS end_ns
    FROM links
    JOIN nodes AS target ON target.attempt = links.attempt AND target.span_id = links.span_id AND target.node <> links.node
    GROUP BY links.node, links.attempt
    HAVING count(DISTINCT target.node) = 1
),
parents AS MATERIALIZED (
    -- Nobody's, where there is no such link.
    FROM declared WHERE EXISTS (FROM single)
),
above AS (
    -- From each span linked to up to the first that has a name.
    SELECT parent AS start, parent AS node FROM single
    UNION
    SELECT above.start, parents.parent
    FROM above
    JOIN parents USING (node)
    ANTI JOIN names ON names.node = above.node
),
agents AS MATERIALIZED (
    SELECT above.start, names.agent_name FROM above JOIN names USING (node)
),
named AS MATERIALIZED (
    SELECT nodes.attempt, nodes.op, names.agent_name, nodes.start_ns, nodes.end_ns
    FROM names
    JOIN nodes USING (node)
    SEMI JOIN single USING (attempt)
),
times AS MATERIALIZED (
    -- An agent's spans in the order they began, with the latest end so far.
    SELECT attempt, agent_name, start_ns, max(end_ns) OVER (PARTITION BY attempt, agent_name ORDER BY start_ns) AS end_ns
    FROM (
        SELECT attempt, agent_name, coalesce(start_ns, -1) AS start_ns, coalesce(end_ns, never_ns()) AS end_ns
        FROM named
        WHERE op <> 'llm' AND coalesce(start_ns, end_ns) IS NOT NULL
    )
),
held AS (
    SELECT asked.node, asked.parent
    FROM (
        SELECT
            single.node,
            single.attempt,
            single.parent,
            agents.agent_name,
            least(single.end_ns, single.start_ns + clock_tolerance_ns()) AS x,
            greatest(single.start_ns, single.end_ns - clock_tolerance_ns()) AS y
        FROM single
        JOIN agents ON agents.start = single.parent
    ) AS asked
    ASOF JOIN times ON times.attempt = asked.attempt AND times.agent_name = asked.agent_name AND asked.x >= times.start_ns
    WHERE times.end_ns >= asked.y
)
FROM held
UNION ALL
SELECT single.node, single.parent
FROM single
ANTI JOIN agents ON agents.start = single.parent
WHERE single.attempt NOT IN (SELECT attempt FROM named)
    OR single.parent IN (SELECT above.start FROM above JOIN nodes USING (node) WHERE nodes.op = 'rollout')
