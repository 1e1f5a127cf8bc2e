"""The diffusion model: a frozen base, tokens learned beside its table, and sampling from the two."""
