"""Which latents are active: exact choices, what proposes them faster, and where they lie."""
