"""Sessions written to disk as they happen (the table ``[record]``), and lived again from there.

``recorder``, ``tap``             watch a session from outside, and take down what goes in and comes out
``journal``                       that, an entry a line
``archive``, ``archive_writer``   the directory it lies in, with the sound and the images
``retention``, ``model_facts``    how much is kept; which models were at work
``replay``, ``replay_*``          the session driven by its journal, and what came out differently

``docs/recording.md`` is the manual.
"""
