"""Sound to tokens and sound to wire: codecs that agents and transports find by name."""
