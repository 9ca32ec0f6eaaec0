"""What a coder is worth: reconstruction, what the model loses, what labels say; and baselines."""
