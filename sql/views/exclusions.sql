-- Every call of the epoch's training rollouts that is not trained on, choice by choice, and why.
-- Grain: one row per (call_id, choice). Calls of attempts that do not count have no id: there one row per (span_id, choice).
-- Inputs: stored.exclusions.
SELECT * REPLACE (call_id_of(run, epoch, call_id) AS call_id) FROM stored.exclusions
