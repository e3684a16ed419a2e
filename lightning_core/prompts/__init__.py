"""Prompts: their versions in the home, and what a rollout is served of them.

Files:
    store.py     versions of one prompt on disk      served.py    the versions that a rollout is served
    seeds.py     the files that the settings name
"""
