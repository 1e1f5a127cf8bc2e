"""How a relation is learned: the one training loop, its losses and draws, and what it leaves."""
