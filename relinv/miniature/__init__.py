"""The miniature: how a small Stable Diffusion and its judge are trained from the world's scenes."""
