-- The agents that could have made a call whose agent is ambiguous.
-- Grain: one row per (call_id, agent). Inputs: stored.candidate_agents.
-- Rule: that of sql/triplets/candidate_agents.sql; `agent` is NULL for an unknown agent.
SELECT * REPLACE (call_id_of(run, epoch, call_id) AS call_id, nullif(agent, '') AS agent) FROM stored.candidate_agents
