"""The agent: PID 1 of a Linux guest under attack.

It runs from the host's own files inside the guest, so it uses the standard library alone. It takes requests, one JSON
object a line, from a terminal of the guest that is a pseudo-terminal of the host's, and answers the same way.

What it says is believed only as far as a guest's word goes: the oracles look at what the kernel printed, at whether the
guest lives, and at what crossed the boundary.
"""
