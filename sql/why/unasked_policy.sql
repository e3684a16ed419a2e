-- Nobody asked for a policy: it answered no call of the epoch, so nothing of it is trained or tested.
-- Grain: one row per (epoch, mode, policy). Parameters: run. Inputs: epoch_manifests, epochs, calls.
-- Remedy: Let the agent ask for the policy's name as its model, or give the policy the name that the agent asks for (`policies[].aliases`); a client that does not read OPENAI_BASE_URL goes past the gateway.
-- Evidence: SELECT epoch, mode, policy, model, recorded_by, count(*) AS calls FROM calls WHERE run = $run AND twin_of IS NULL GROUP BY ALL ORDER BY ALL
WITH served AS (
    SELECT epoch, mode, unnest(map_keys(versions)) AS policy
    FROM epoch_manifests
    WHERE run = $run AND sealed_offset IS NOT NULL
),
asked AS (
    SELECT epoch, mode, policy, coalesce(policy, model, 'no name') AS name, count(*) AS calls
    FROM calls
    WHERE run = $run AND twin_of IS NULL
    GROUP BY ALL
),
others AS (
    SELECT epoch, mode, sum(calls)::BIGINT AS calls, string_agg(format('{} ({})', name, calls), ', ' ORDER BY calls DESC, name) AS names
    FROM asked
    GROUP BY ALL
)
SELECT
    served.epoch,
    served.mode,
    served.policy,
    'error' AS severity,
    format('none of {} calls asked for {}; they asked for: {}', coalesce(others.calls, 0), served.policy, coalesce(others.names, 'nothing')) AS what
FROM served
JOIN (FROM epochs WHERE run = $run AND rollouts > 0) AS rolled_out USING (epoch, mode)
LEFT JOIN others USING (epoch, mode)
ANTI JOIN asked ON asked.epoch = served.epoch AND asked.mode = served.mode AND asked.policy = served.policy
