"""Requests as they came, in append-only segments, each answered only once it is on disk.

spool.py         writing, reading, freeing it       spool_format.py  how a record lies in it
"""
