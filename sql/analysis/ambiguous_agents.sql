-- Calls that several agents could have made: how many, and by which evidence the others were assigned.
-- Grain: one row per (run, epoch, method). Inputs: span_tree.
-- Parameters: p_run, p_epoch (default: all).
-- Rule: only LLM calls, each once. `ambiguous` calls train nothing unless the policy says `ambiguous: train`. `candidates`:
-- the largest number of agents that one call could belong to.
SELECT
    run,
    epoch,
    method,
    count(*) AS calls,
    count(*) FILTER (ambiguous) AS ambiguous,
    count(*) / sum(count(*)) OVER (PARTITION BY run, epoch) AS share,
    avg(confidence) AS mean_confidence,
    max(candidates) AS candidates,
    count(*) FILTER (agent IS NULL) AS without_agent,
    min(rollout_id) FILTER (ambiguous) AS example
FROM span_tree
WHERE op = 'llm' AND twin_node IS NULL AND (p_run IS NULL OR run = p_run) AND (p_epoch IS NULL OR epoch = p_epoch)
GROUP BY run, epoch, method
ORDER BY run, epoch, ambiguous DESC, calls DESC, method
