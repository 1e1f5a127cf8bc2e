"""Relation inversion: learn the relation a few pictures share as one token of a frozen diffusion model."""

__version__ = "0.1.0"
