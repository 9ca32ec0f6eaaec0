"""Reading latents: an index of where they are active, and everything that follows from it."""
