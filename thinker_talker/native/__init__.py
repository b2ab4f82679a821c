"""The native engine: a full-duplex model of the Moshi family, many calls to a device."""
