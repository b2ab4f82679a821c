"""The model: one step of every call, and what it remembers of each."""
