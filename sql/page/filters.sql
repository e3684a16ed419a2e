-- The values by which the rollouts of a run can be filtered.
-- Grain: one row. Parameters: run. Inputs: rollouts, calls, exclusions, rollout_fates.
WITH called AS (
    SELECT
        list(DISTINCT agent ORDER BY agent) FILTER (agent IS NOT NULL) AS agents,
        list(DISTINCT policy_version ORDER BY policy_version) FILTER (policy_version IS NOT NULL) AS versions
    FROM calls
    WHERE run = $run
)
SELECT
    (SELECT list(DISTINCT epoch ORDER BY epoch) FROM rollouts WHERE run = $run) AS epochs,
    called.agents,
    called.versions,
    (SELECT list(DISTINCT reason ORDER BY reason) FROM exclusions WHERE run = $run) AS reasons,
    (SELECT list(DISTINCT fate ORDER BY fate) FILTER (NOT trained) FROM rollout_fates WHERE run = $run) AS fates
FROM called
