"""Drivers, one device type a file."""
