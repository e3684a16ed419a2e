-- Which recorded rollouts a finetuning selects from, and why it does not take the others.
-- Grain: one row per (run, epoch, rollout_id). Inputs: stored.finetune_rollouts.
SELECT * EXCLUDE (began_ns), make_timestamp_ns(began_ns) AS started FROM stored.finetune_rollouts
