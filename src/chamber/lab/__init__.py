"""Guests to attack, their stimuli and the oracles that tell what happened."""
