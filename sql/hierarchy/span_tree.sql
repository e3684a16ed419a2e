-- The tree of every attempt as repaired: each span's place, how it was found, and the agent it belongs to.
-- Grain: one row per span of epoch_spans.
-- Inputs: epoch_spans, parents, llm_twins.
-- Rule: a span belongs to the nearest named ancestor-or-self. A cycle is broken at its earliest span, which goes under
-- the root. What lies under an `ambiguous` span is ambiguous too, until a span names its agent. What was declared stays in `declared_parent_id`; `method` says where `parent_id` came from.
WITH RECURSIVE
agents AS (
    -- A kept call goes by the name its instrumented twin carries, if it has none itself.
    SELECT
        epoch_spans.node,
        coalesce(epoch_spans.agent_name, min(twin.agent_name)) AS agent_name
    FROM epoch_spans
    LEFT JOIN llm_twins ON llm_twins.kept = epoch_spans.node
    LEFT JOIN epoch_spans AS twin ON twin.node = llm_twins.node
    GROUP BY epoch_spans.node, epoch_spans.agent_name
),
reached AS (
    SELECT node FROM parents WHERE parent IS NULL
    UNION ALL
    SELECT parents.node FROM parents JOIN reached ON parents.parent = reached.node
),
lost AS (
    SELECT node, parent FROM parents ANTI JOIN reached USING (node)
),
closure AS (
    -- Who is above whom among the spans that no root reaches; a span above itself is on a cycle.
    SELECT node, parent AS above FROM lost
    UNION
    SELECT closure.node, lost.parent FROM closure JOIN lost ON closure.above = lost.node
),
cycles AS (
    SELECT node, min(above) AS first_of_cycle
    FROM closure
    WHERE node IN (SELECT node FROM closure WHERE node = above)
    GROUP BY node
),
edges AS (
    SELECT
        parents.node,
        CASE WHEN cycles.node IS NULL THEN parents.parent ELSE roots.node END AS parent,
        CASE WHEN cycles.node IS NULL THEN parents.method ELSE 'cycle' END AS method,
        parents.candidates
    FROM parents
    LEFT JOIN cycles ON cycles.node = parents.node AND cycles.first_of_cycle = parents.node
    LEFT JOIN epoch_spans AS this ON this.node = parents.node
    LEFT JOIN (
        SELECT p.node, s.rollout_id, s.attempt_id
        FROM parents AS p JOIN epoch_spans AS s USING (node)
        WHERE p.parent IS NULL
    ) AS roots ON roots.rollout_id = this.rollout_id AND roots.attempt_id = this.attempt_id
),
walk AS (
    SELECT edges.*, 0 AS depth, agents.agent_name AS agent, agents.agent_name AS agent_path, false AS ambiguous
    FROM edges JOIN agents USING (node)
    WHERE edges.parent IS NULL
    UNION ALL
    SELECT
        edges.*,
        walk.depth + 1,
        coalesce(agents.agent_name, walk.agent),
        CASE
            WHEN agents.agent_name IS NULL OR agents.agent_name IS NOT DISTINCT FROM walk.agent THEN walk.agent_path
            ELSE concat_ws('/', walk.agent_path, agents.agent_name)
        END,
        agents.agent_name IS NULL AND (walk.ambiguous OR edges.method = 'ambiguous')
    FROM walk
    JOIN edges ON edges.parent = walk.node
    JOIN agents ON agents.node = edges.node
)
SELECT
    this.rollout_id,
    this.attempt_id,
    walk.node,
    this.trace_id,
    this.span_id,
    this.parent_span_id AS declared_parent_id,
    above.span_id AS parent_id,
    walk.parent AS parent_node,
    walk.method,
    walk.candidates,
    CASE walk.method
        WHEN 'declared' THEN 1.0 WHEN 'twin' THEN 1.0 WHEN 'time' THEN 0.8 WHEN 'ambiguous' THEN 0.0 ELSE 0.5
    END AS confidence,
    walk.depth,
    this.name,
    this.op,
    walk.agent,
    walk.agent_path,
    walk.ambiguous,
    twins.kept AS twin_of,
    this.repeated_id,
    this.start_ns,
    this.end_ns
FROM walk
JOIN epoch_spans AS this USING (node)
LEFT JOIN epoch_spans AS above ON above.node = walk.parent
LEFT JOIN llm_twins AS twins ON twins.node = walk.node
ORDER BY walk.node
