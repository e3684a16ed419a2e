-- What each call that could be trained on is credited with.
-- Grain: one row per call_id. Inputs: stored.call_returns.
-- Rule: `agent` and `step` say what it is compared with; with `reward.assign: final` that is the whole rollout, and both are NULL. `agent` is also
-- NULL if the agent has no name.
SELECT
    * REPLACE (
        call_id_of(run, epoch, call_id) AS call_id,
        nullif(agent, '') AS agent,
        nullif(step, 0) AS step
    )
FROM stored.call_returns
