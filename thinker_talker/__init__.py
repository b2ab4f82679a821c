"""The minds: the embedded cascade (listener → thinker → talker) and its turn-state predictor.

Start with :mod:`.cascade`, which puts the others behind the agent contract.
"""
