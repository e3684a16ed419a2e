-- The rungs of the ladder: how a span's place was found.
-- Grain: one row per method, strongest first; `confidence` in the place and the agent that comes with it. Inputs: none.
SELECT * FROM (VALUES
    ('root',           1.0, 'the root span of the attempt'),
    ('declared',       1.0, 'the parent that the span declares, found in the attempt, in whatever trace'),
    ('twin',           1.0, 'the place of the other record of the same call'),
    ('tool_call',      0.9, 'beside the one call whose output asked for this tool call id'),
    ('own_identity',   0.9, 'under the root; the span names its agent itself'),
    ('link',           0.8, 'under the one span of the attempt that it links to'),
    ('missing_parent', 0.8, 'under a node made for the declared parent, which never came; its other children are there too'),
    ('content',        0.9, 'whose prompt it is: of the agents that could have made it, or of one whose span is lost'),
    ('time',           0.8, 'in the time of exactly one agent, or of one inside the others'),
    ('same_name',      0.7, 'in the time of several spans of one agent: which agent is certain, which span is not'),
    ('synthesised',    0.5, 'a declared parent that never came; placed by the time that its children cover'),
    ('unplaced',       0.5, 'under the root: no agent''s time holds it'),
    ('cycle',          0.3, 'under the root: the declared parents run in a circle, broken at its earliest span'),
    ('ambiguous',      0.0, 'under the root: in the time of several agents; its calls are not trained on unless settings say so')
) AS methods (method, confidence, evidence)
