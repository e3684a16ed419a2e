"""The page of a lake: runs, tasks, groups, rollouts, calls and tokens in a browser. It reads, and changes nothing.

What is shown:
    figures.py       the SQL of sql/page over the catalog    rollout.py  one rollout, with its calls and its group
    tokens.py        sampled tokens as text
    charts.py        curves, bars, time lines as SVG         words.py     addresses, numbers, the rule of a reward
    asking.py        SQL and saved questions

Who shows it to whom:
    app.py           an address for each page                serve.py     listens
    guard.py         who is let in                           one_file.py  a run in one file
    terminal.py      a rollout without a browser

What a page looks like is in `templates` and `static`.
"""
