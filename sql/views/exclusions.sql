-- Every call of the epoch's training rollouts that is not trained on, choice by choice, and why.
-- Grain: one row per (call_id, choice); of attempts that do not count, whose calls have no id, per (span_id, choice).
-- Inputs: stored.exclusions.
SELECT * REPLACE (call_id_of(run, epoch, call_id) AS call_id) FROM stored.exclusions
