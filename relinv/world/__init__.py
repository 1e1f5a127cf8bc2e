"""The miniature's small world: sprites arranged by relations into seeded 64 × 64 scenes with unreliable captions."""
