-- The calls that a version was trained on.
-- Grain: one row per call_id. Inputs: stored.sequences, epoch_manifests.
-- Rule: the calls in the epoch's sequences, if the policy was trained on these sequences. So there is none before the training ended, if it was
-- skipped, or if the sequences were derived again since (`regrade`). A call of several choices (`n` > 1) counts once.
SELECT DISTINCT
    calls.run,
    calls.epoch,
    calls.policy,
    manifests.trained[calls.policy] AS version,
    call_id_of(calls.run, calls.epoch, split_part(calls.id, '.', 1)) AS call_id
FROM (SELECT run, epoch, policy, unnest(call_ids) AS id FROM stored.sequences) AS calls
JOIN epoch_manifests AS manifests
    ON manifests.run = calls.run AND manifests.epoch = calls.epoch AND manifests.mode = 'train'
WHERE manifests.trained[calls.policy] IS NOT NULL
