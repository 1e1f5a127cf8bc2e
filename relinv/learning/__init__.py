"""How a relation is learned: the one training loop, its batches and losses, and the files it writes."""
