"""The names of what forkrunner runs for itself: jobs like any other, which take no slot and are in no list of users' jobs."""

from __future__ import annotations

#: Task, and queue, of the jobs that send a mail each. No task of an application can be called so.
MAIL = "forkrunner:mail"
#: What names of forkrunner's own begin with.
PREFIX = "forkrunner:"
#: Their priority: below all that a user's job can have, so that both kinds are a range of the index of live rows each.
LOWEST = -(2**31)
