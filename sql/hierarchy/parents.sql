-- Each span's parent, by the strongest evidence there is, and which evidence that was.
-- Grain: one row per span of epoch_spans. `parent` is NULL for the root of an attempt only.
-- Inputs: epoch_spans, llm_twins.
-- Ladder: twin (the place of the instrumented twin) → declared (resolved within the attempt, across traces) →
-- time (inside exactly one agent's span; where inside none, with 50 ms of tolerance; several agents: `ambiguous`) → root.
WITH RECURSIVE
nodes AS (
    SELECT node, rollout_id, attempt_id, trace_id, span_id, parent_span_id, op, agent_name, start_ns, end_ns
    FROM epoch_spans
),
roots AS (
    SELECT rollout_id, attempt_id, min(node) AS root
    FROM nodes
    WHERE op = 'rollout'
    GROUP BY ALL
),
declared AS (
    -- The parent of the same trace first; a repeated id names its earliest span.
    SELECT
        child.node,
        min_by(parent.node, (parent.trace_id <> child.trace_id, parent.node)) AS parent
    FROM nodes AS child
    JOIN nodes AS parent
        ON child.rollout_id = parent.rollout_id
        AND child.attempt_id = parent.attempt_id
        AND child.parent_span_id = parent.span_id
        AND child.node <> parent.node
    GROUP BY child.node
),
twins AS (
    SELECT kept AS node, min(declared.parent) AS parent
    FROM llm_twins
    JOIN declared ON declared.node = llm_twins.node
    GROUP BY kept
),
orphans AS (
    SELECT nodes.*
    FROM nodes
    ANTI JOIN declared USING (node)
    ANTI JOIN twins USING (node)
    WHERE nodes.op <> 'rollout' AND nodes.start_ns IS NOT NULL
),
enclosing AS (
    SELECT
        orphan.node,
        agent.node AS agent_node,
        agent.agent_name,
        agent.start_ns,
        agent.start_ns <= orphan.start_ns
            AND coalesce(agent.end_ns >= coalesce(orphan.end_ns, orphan.start_ns), true) AS strictly
    FROM orphans AS orphan
    JOIN nodes AS agent
        ON orphan.rollout_id = agent.rollout_id
        AND orphan.attempt_id = agent.attempt_id
        AND agent.agent_name IS NOT NULL
        AND agent.op <> 'llm'
        AND agent.node <> orphan.node
        AND agent.start_ns <= orphan.start_ns + 50_000_000
        AND coalesce(agent.end_ns, orphan.end_ns, orphan.start_ns) + 50_000_000 >= coalesce(orphan.end_ns, orphan.start_ns)
    WHERE orphan.agent_name IS NULL
),
candidates AS (
    -- The tolerance is for skewed clocks: it counts only where no agent's span holds the orphan as it is.
    SELECT *
    FROM enclosing
    QUALIFY strictly OR NOT bool_or(strictly) OVER (PARTITION BY node)
),
above AS (
    -- Everything above a candidate by declared parents; UNION ends at a cycle.
    SELECT agent_node, agent_node AS ancestor FROM candidates
    UNION
    SELECT above.agent_node, declared.parent FROM above JOIN declared ON declared.node = above.ancestor
),
innermost AS (
    -- Of nested agents the inner one qualifies: one that has no other candidate in its declared subtree.
    SELECT outside.*
    FROM candidates AS outside
    ANTI JOIN (
        SELECT inside.node, above.ancestor AS agent_node
        FROM candidates AS inside
        JOIN above ON above.agent_node = inside.agent_node AND above.ancestor <> inside.agent_node
    ) AS outer_ones ON outer_ones.node = outside.node AND outer_ones.agent_node = outside.agent_node
),
timed AS (
    SELECT
        node,
        count(DISTINCT agent_name) AS candidates,
        max_by(agent_node, (start_ns, agent_node)) AS agent_node
    FROM innermost
    GROUP BY node
)
SELECT
    nodes.node,
    CASE
        WHEN nodes.op = 'rollout' AND nodes.node = roots.root THEN NULL
        WHEN twins.parent IS NOT NULL THEN twins.parent
        WHEN declared.parent IS NOT NULL THEN declared.parent
        WHEN timed.candidates = 1 THEN timed.agent_node
        ELSE roots.root
    END AS parent,
    CASE
        WHEN nodes.op = 'rollout' AND nodes.node = roots.root THEN 'root'
        WHEN twins.parent IS NOT NULL THEN 'twin'
        WHEN declared.parent IS NOT NULL THEN 'declared'
        WHEN timed.candidates = 1 THEN 'time'
        WHEN timed.candidates > 1 THEN 'ambiguous'
        WHEN nodes.parent_span_id IS NOT NULL THEN 'missing_parent'
        ELSE 'root'
    END AS method,
    coalesce(timed.candidates, 0) AS candidates
FROM nodes
LEFT JOIN roots USING (rollout_id, attempt_id)
LEFT JOIN twins USING (node)
LEFT JOIN declared USING (node)
LEFT JOIN timed USING (node)
ORDER BY node
