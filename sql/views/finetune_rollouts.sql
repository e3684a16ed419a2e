-- Which recorded rollouts a finetuning looks at, and why it does not look at the others.
-- Grain: one row per (run, epoch, rollout_id). Inputs: stored.finetune_rollouts.
SELECT * EXCLUDE (began_ns), make_timestamp_ns(began_ns) AS started FROM stored.finetune_rollouts
