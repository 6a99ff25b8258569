"""Bytes that cross a boundary: layouts and codecs. No I/O, no state, no opinion."""
