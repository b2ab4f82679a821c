"""Fuzzing of everything that reads what others wrote. ``docs/fuzzing.md`` says how to run it and what it holds to.

``target``      what a target is, and one input held against its promises
``targets_*``   the targets, by who sends them what
``mutate``      changed inputs: flips, cuts, repeats, splices, numbers at their ends
``structured``  well-formed inputs with something wrong in them (Hypothesis strategies)
``corpus``      inputs that are kept: one file each, ``corpus/TARGET/NAME``
``__main__``    ``python -m fuzz``, the long run: a process for each target, within a memory limit
"""
