-- What each optimizer step did with each token that it trained, as the trainer measured it before the step.
-- Grain: one row per (run, epoch, policy, step, sequence_id). Inputs: stored.training_rows, epoch_manifests.
-- Rule: every list has one entry a trained token: those of the sequence whose loss_mask is 1, in their order. Only sequences that a version was
-- trained on have rows (trained_calls); `algorithm: sft` has none. A token's part in the gradient is its advantage × ratio × loss weight, or 0 if
-- it is clipped (KL and entropy bonus aside). On disk: 11 bytes a trained token in the demo (5,851 tokens of three epochs are 65 kB).
SELECT rows.*
FROM stored.training_rows AS rows
JOIN epoch_manifests AS manifests
    ON manifests.run = rows.run AND manifests.epoch = rows.epoch AND manifests.mode = 'train'
WHERE manifests.trained[rows.policy] IS NOT NULL
