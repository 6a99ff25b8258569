"""The guest's TCB: untrusted values, bounce pool, the driver half of the rings, filters, drivers."""
