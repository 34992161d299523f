"""``survive doctor``: what this host can do, what it lacks, and what to do about it.

It has no truth of its own about faults and targets: it asks what a run would ask
(``survive.contracts.check_host``, ``Driver.lacks``), before there is a target. Changes nothing.
"""
