-- What the rollouts of a run can be chosen by.
-- Grain: one row. Parameters: run. Inputs: rollouts, policy_calls, exclusion_reasons.
SELECT
    (SELECT list(DISTINCT epoch ORDER BY epoch) FROM rollouts WHERE run = $run) AS epochs,
    (SELECT list(DISTINCT agent ORDER BY agent) FROM policy_calls WHERE run = $run AND agent IS NOT NULL) AS agents,
    (SELECT list(DISTINCT policy_version ORDER BY policy_version) FROM policy_calls WHERE run = $run AND policy_version IS NOT NULL) AS versions,
    (SELECT list(DISTINCT reason ORDER BY reason) FROM exclusion_reasons WHERE run = $run) AS reasons
