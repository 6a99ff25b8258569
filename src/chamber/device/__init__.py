"""The device side: the device half of the rings, the device models, and where they can be interfered with."""
