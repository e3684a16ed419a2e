-- The settings of a run beside those of another one, those that differ first.
-- Grain: one row per setting that is not at its default in one of the two. Parameters: run, other. Inputs: run_settings.
-- Rule: NULL is the default.
SELECT
    setting,
    own.given,
    others.given AS other_given,
    own.given IS DISTINCT FROM others.given AS differs
FROM (FROM run_settings WHERE run = $run) AS own
FULL JOIN (FROM run_settings WHERE run = $other) AS others USING (setting)
ORDER BY differs DESC, setting
