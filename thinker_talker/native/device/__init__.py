"""What owns the device: buffers, graphs, and the engine the scheduler steps."""
