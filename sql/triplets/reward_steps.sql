-- Which call each reward goes to, if rewards are given to calls (`assign: nearest` or `discounted`).
-- Grain: one row per (reward, policy, agent) to whose calls it can go. `call_id` is NULL if it goes to no call. `left_out` says why:
-- no_call_of_agent, before_every_call, call_has_reward (nearest), ambiguous_agent (the policy drops those), ambiguous_call.
-- Inputs: rewards_given, policy_rewards, call_steps, agent_runs, candidate_agents, span_agents, edges, nodes, llm_twins, policies,
-- reward_settings.
-- Rule: docs/credit.md has it at length.
-- A reward on a call, or right under its span, is that call's.
-- A reward under an agent goes to the agent's latest call that had ended by then: of several agents of one name to its own span's calls, and of
-- overlapping ones to no other's. A reward on or right under a step (a span of no call and no agent) counts as given at the step's end, and goes
-- first to a call inside the step, if ids show one.
-- A reward outside every agent goes to the latest such call of each agent name. A reward after the attempt (a grader's, the failure reward)
-- goes to the last call, whatever its time.
-- Clocks differ: a reward in the last 50 ms of a call is for that call, unless the agent had several calls under way and may have emitted it
-- while it waited. A reward up to 50 ms before the end of the agent's first call is for that call.
-- `nearest`: a call takes the first reward of a name from its agent and the first from outside. A later one is left out and counted; it does
-- not move to an earlier call. Rewards of rules (AIR) always add up.
-- `ambiguous_call`: a call that may be the agent's, and is left out for that, ended between the call that the reward would go to and the reward.
-- Likewise for one of several overlapping agents of one name, if a call may be made by any of them and that changes what a call is credited
-- with: one that ended between (nearest), or any before (discounted).
WITH RECURSIVE
valued AS (
    -- `for_policy`: that of a policy which names rewards of its own; NULL: of all that do not.
    SELECT * EXCLUDE (counts, left_out), NULL AS for_policy
    FROM rewards_given
    WHERE left_out IS NULL AND EXISTS (FROM policies WHERE NOT own_rewards)
    UNION ALL BY NAME
    SELECT * EXCLUDE (policy, counts), policy AS for_policy FROM policy_rewards
),
rewards AS MATERIALIZED (
    -- `place`: what was rewarded, as the reward itself or the span right above it says.
    SELECT
        given.*,
        coalesce(llm_twins.kept, CASE WHEN place.op = 'llm' THEN place.node END, given.node) AS on_node,
        place.op <> 'llm' AND place.node IS DISTINCT FROM tree.agent_node AS in_step,
        CASE WHEN in_step THEN place.node END AS step_node,
        CASE
            WHEN given.source IN ('grader', 'failure') THEN never_ns()
            WHEN in_step THEN least(given.emitted_ns, place.end_ns)
            ELSE given.emitted_ns
        END AS at_ns,
        CASE WHEN given.agent IS NOT NULL THEN tree.agent_node END AS agent_node,
        agent_runs.crew,
        row_number() OVER (ORDER BY given.rollout_id, given.attempt_id, emitted_ns, given.node, source, name, for_policy) AS reward_id
    FROM valued AS given
    CROSS JOIN reward_settings AS settings
    LEFT JOIN span_agents AS tree ON tree.node = given.node
    LEFT JOIN agent_runs ON agent_runs.node = tree.agent_node AND given.agent IS NOT NULL
    LEFT JOIN edges ON edges.node = given.node AND given.source = 'emitted'
    LEFT JOIN nodes AS itself ON itself.node = given.node AND itself.op <> 'reward'
    LEFT JOIN nodes AS place ON place.node = coalesce(itself.node, edges.parent) AND given.source = 'emitted'
    LEFT JOIN llm_twins ON llm_twins.node = coalesce(CASE WHEN place.op = 'llm' THEN place.node END, given.node)
    WHERE settings.assign <> 'final'
),
climbed AS MATERIALIZED (
    -- What each call lies in, up to the top, in attempts with rewards of steps.
    SELECT calls.call_id, edges.parent AS node
    FROM call_steps AS calls
    SEMI JOIN (FROM rewards WHERE step_node IS NOT NULL) AS named USING (rollout_id, attempt_id)
    JOIN edges ON edges.node = calls.call_id
    UNION
    SELECT climbed.call_id, edges.parent FROM climbed JOIN edges USING (node)
),
asked AS (
    -- Of the agent, whichever of its spans (`within` 0); of each of its spans; and of each step that has a reward.
    SELECT *, 0 AS within FROM call_steps
    UNION ALL
    SELECT *, agent_node FROM call_steps WHERE agent_node IS NOT NULL
    UNION ALL
    SELECT calls.*, climbed.node
    FROM climbed
    SEMI JOIN rewards ON rewards.step_node = climbed.node
    JOIN call_steps AS calls USING (call_id)
),
counted AS (
    SELECT
        *,
        CASE
            WHEN lag(ended_ns) OVER calls IS NULL THEN ended_ns - clock_tolerance_ns()
            WHEN lag(ended_ns) OVER calls > began_ns THEN ended_ns
            ELSE greatest(ended_ns - clock_tolerance_ns(), least(began_ns + 1, ended_ns))
        END AS from_ns
    FROM asked
    WINDOW calls AS (PARTITION BY policy, rollout_id, attempt_id, agent, within ORDER BY step)
),
moments AS MATERIALIZED (
    -- Of calls that ended at the same time the last is the latest.
    SELECT policy, rollout_id, attempt_id, agent, within, from_ns, max_by(call_id, step) AS call_id
    FROM counted
    GROUP BY ALL
),
agents AS (
    SELECT DISTINCT steps.policy, steps.rollout_id, steps.attempt_id, steps.agent, policies.own_rewards
    FROM call_steps AS steps
    JOIN policies USING (policy)
),
pairs AS (
    SELECT rewards.*, agents.policy, agents.agent AS receiver
    FROM rewards
    LEFT JOIN agents
        ON agents.rollout_id = rewards.rollout_id
        AND agents.attempt_id = rewards.attempt_id
        AND (rewards.ambiguous OR coalesce(rewards.agent = agents.agent, true))
        AND CASE WHEN rewards.for_policy IS NULL THEN NOT agents.own_rewards ELSE agents.policy = rewards.for_policy END
),
found AS (
    SELECT
        pairs.*,
        itself.call_id AS own_call,
        coalesce(itself.call_id, step_moments.call_id, own_moments.call_id) AS certain_call,
        moments.call_id AS named_call
    FROM pairs
    LEFT JOIN call_steps AS itself
        ON itself.call_id = pairs.on_node AND itself.policy = pairs.policy AND itself.agent = pairs.receiver
    ASOF LEFT JOIN moments AS step_moments
        ON step_moments.policy = pairs.policy
        AND step_moments.rollout_id = pairs.rollout_id
        AND step_moments.attempt_id = pairs.attempt_id
        AND step_moments.agent = pairs.receiver
        AND step_moments.within = pairs.step_node
        AND step_moments.from_ns <= pairs.at_ns
    ASOF LEFT JOIN moments AS own_moments
        ON own_moments.policy = pairs.policy
        AND own_moments.rollout_id = pairs.rollout_id
        AND own_moments.attempt_id = pairs.attempt_id
        AND own_moments.agent = pairs.receiver
        AND own_moments.within = pairs.agent_node
        AND own_moments.from_ns <= pairs.at_ns
    ASOF LEFT JOIN moments
        ON moments.policy = pairs.policy
        AND moments.rollout_id = pairs.rollout_id
        AND moments.attempt_id = pairs.attempt_id
        AND moments.agent = pairs.receiver
        AND moments.within = 0
        AND moments.from_ns <= pairs.at_ns
),
placed AS MATERIALIZED (
    SELECT found.*, chosen.call_id, chosen.step, chosen.ended_ns, chosen.crew AS call_crew, chosen.agent_node AS call_agent_node
    FROM found
    LEFT JOIN call_steps AS named ON named.call_id = found.named_call
    LEFT JOIN call_steps AS chosen
        ON chosen.call_id = CASE
            WHEN found.certain_call IS NOT NULL THEN found.certain_call
            -- Not what is another's of the crew.
            WHEN coalesce(named.crew <> found.crew, true) OR named.agent_node IS NULL THEN found.named_call
        END
),
unclear AS MATERIALIZED (
    -- Calls of a crew of which it is not known whose.
    SELECT policy, rollout_id, attempt_id, agent, crew, ended_ns, ended_ns - clock_tolerance_ns() AS from_ns
    FROM call_steps
    WHERE crew IS NOT NULL AND agent_node IS NULL
),
of_a_crew AS (
    SELECT placed.reward_id, placed.policy, placed.receiver
    FROM placed
    JOIN policies ON policies.policy = placed.policy AND policies.ambiguous = 'drop'
    CROSS JOIN reward_settings AS settings
    ASOF LEFT JOIN unclear
        ON unclear.policy = placed.policy
        AND unclear.rollout_id = placed.rollout_id
        AND unclear.attempt_id = placed.attempt_id
        AND unclear.agent = placed.receiver
        AND unclear.crew = placed.crew
        AND unclear.from_ns <= placed.at_ns
    WHERE placed.agent IS NOT NULL
        AND CASE
            WHEN placed.own_call IS NOT NULL
                THEN settings.assign = 'discounted' AND placed.call_crew IS NOT NULL AND placed.call_agent_node IS NULL
            WHEN placed.agent_node IS NULL THEN placed.call_crew IS NOT NULL
            ELSE unclear.crew IS NOT NULL
                AND (settings.assign = 'discounted' OR placed.certain_call IS NULL OR unclear.ended_ns > placed.ended_ns)
        END
),
of_nobody AS (
    SELECT placed.reward_id, placed.policy, placed.receiver
    FROM placed
    JOIN policies ON policies.policy = placed.policy AND policies.ambiguous = 'drop'
    JOIN call_steps AS nameless
        ON nameless.policy = placed.policy
        AND nameless.rollout_id = placed.rollout_id
        AND nameless.attempt_id = placed.attempt_id
        AND nameless.agent = ''
    JOIN candidate_agents ON candidate_agents.call_id = nameless.call_id AND candidate_agents.agent = placed.receiver
    WHERE placed.agent IS NOT NULL
        AND placed.on_node <> placed.call_id
        AND nameless.ended_ns > placed.ended_ns
        AND nameless.ended_ns - clock_tolerance_ns() <= placed.at_ns
),
doubtful AS (
    FROM of_a_crew
    UNION
    FROM of_nobody
),
ordered AS (
    SELECT
        placed.*,
        row_number() OVER (
            PARTITION BY placed.policy, call_id, name, placed.agent IS NULL, source IN ('air', 'failure')
            ORDER BY reward_id
        ) AS place
    FROM placed
)
SELECT
    ordered.rollout_id,
    ordered.attempt_id,
    ordered.node,
    ordered.span_id,
    ordered.name,
    ordered.source,
    ordered.value * ordered.weight AS value,
    ordered.policy,
    ordered.receiver AS agent,
    CASE WHEN why.left_out IS NULL THEN ordered.call_id END AS call_id,
    CASE WHEN why.left_out IS NULL THEN ordered.step END AS step,
    why.left_out
FROM ordered
CROSS JOIN reward_settings AS settings
LEFT JOIN policies ON policies.policy = ordered.policy
LEFT JOIN doubtful
    ON doubtful.reward_id = ordered.reward_id
    AND doubtful.policy = ordered.policy
    AND doubtful.receiver = ordered.receiver
CROSS JOIN LATERAL (
    SELECT
        CASE
            WHEN ordered.policy IS NULL THEN 'no_call_of_agent'
            WHEN ordered.ambiguous AND policies.ambiguous = 'drop' THEN 'ambiguous_agent'
            WHEN ordered.call_id IS NULL THEN 'before_every_call'
            WHEN doubtful.reward_id IS NOT NULL THEN 'ambiguous_call'
            WHEN settings.assign = 'nearest' AND ordered.source NOT IN ('air', 'failure') AND ordered.place > 1 THEN 'call_has_reward'
        END AS left_out
) AS why
ORDER BY ordered.reward_id, ordered.policy, agent
