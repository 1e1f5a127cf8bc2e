"""Learned tokens from other programs, and for them."""
