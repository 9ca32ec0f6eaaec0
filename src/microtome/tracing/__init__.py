"""The Model: sites, capture, interventions, gradients, generation, verification."""
