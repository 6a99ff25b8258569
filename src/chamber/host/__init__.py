"""The untrusted hypervisor: discovery, trap and emulate, the mailbox, the link, and what it owns."""
