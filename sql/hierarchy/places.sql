-- Each span's place in the repaired tree of its attempt, and its agent; `span_tree` has the same with ids.
-- Grain: one row per span, and one (negative `node`) per declared parent that never came.
-- Inputs: span_agents, evidence, llm_twins, tool_twins, methods.
SELECT
    this.node,
    this.parent_node,
    methods.method,
    this.candidates,
    least(methods.confidence::DOUBLE, this.confidence) AS confidence,
    this.depth,
    this.agent,
    this.agent_path,
    this.ambiguous,
    coalesce(llm_twins.kept, tool_twins.kept) AS twin_of
FROM span_agents AS this
LEFT JOIN evidence ON evidence.node = this.node
LEFT JOIN llm_twins ON llm_twins.node = this.node
LEFT JOIN tool_twins ON tool_twins.node = this.node
JOIN methods ON methods.method = coalesce(this.placed_by, evidence.method, 'declared')
