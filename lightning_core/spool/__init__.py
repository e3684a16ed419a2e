"""Requests as they came, in append-only segments, each answered only once it is on disk.

spool.py         writing and freeing it             reading.py       reading it back
spool_format.py  how a record lies in it
"""
