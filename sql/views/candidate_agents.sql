-- The agents that could have made a call of which it is not known whose it is.
-- Grain: one row per (call_id, agent). Inputs: stored.candidate_agents.
-- Rule: that of sql/triplets/candidate_agents.sql; `agent` is NULL for one that nobody knows.
SELECT * REPLACE (call_id_of(run, epoch, call_id) AS call_id, nullif(agent, '') AS agent) FROM stored.candidate_agents
