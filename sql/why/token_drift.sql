-- Replies came back as other tokens than were sampled, so calls are not merged and their prompts are trained anew each time.
-- Grain: one row per (epoch, policy). Parameters: run. Inputs: drift.
-- Remedy: Give vLLM a chat template that keeps replies as they were (`examples/chatml_tools.jinja` does; many drop reasoning, or trim), and let the agent send replies back unchanged.
-- Evidence: SELECT merges.epoch, merges.policy, merges.call_id, agent, drift_position, drift_tokens FROM merges JOIN policy_calls USING (run, epoch, call_id) WHERE merges.run = $run AND reason = 'token_drift'
WITH limits AS (
    SELECT 0.01 AS few, 0.2 AS many
),
agents AS (
    SELECT epoch, policy, coalesce(agent, '(no name)') AS agent, calls, drifted, share, median_position FROM drift WHERE run = $run
),
policies AS (
    SELECT epoch, policy, sum(calls)::BIGINT AS calls, sum(drifted)::BIGINT AS drifted, max_by({'agent': agent, 'share': share, 'at': median_position}, drifted) AS worst
    FROM agents
    GROUP BY ALL
)
SELECT
    epoch,
    'train' AS mode,
    policy,
    CASE WHEN drifted > many * calls THEN 'warning' ELSE 'note' END AS severity,
    format(
        '{} of {} calls with a history drifted ({:.0f}%), most of them of {} ({:.0f}% of its calls, about token {:.0f})',
        drifted, calls, 100 * drifted / calls, worst.agent, 100 * worst.share, worst.at
    ) AS what
FROM policies
CROSS JOIN limits
WHERE drifted > few * calls
