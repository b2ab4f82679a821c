"""The deadline scheduler: one thread owns the device and steps every call in one batched tick."""
