"""Kernels to attack, built here: user-mode-linux from Debian's kernel source or any other tree, made to notice."""
