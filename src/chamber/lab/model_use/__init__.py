"""What the model guest does with each device; one module per device type."""
