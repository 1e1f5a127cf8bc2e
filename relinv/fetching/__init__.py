"""Fetching exemplars from wherever they are, whole and unchanged."""
