"""The pipeline as a whole: run several stages at a time, and brought back to what is committed."""
