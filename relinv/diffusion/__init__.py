"""The diffusion model: a frozen base, tokens learned alongside its table, and sampling with both."""
