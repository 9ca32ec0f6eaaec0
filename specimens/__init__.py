"""Recipes that train the specimens; the weights they make ship inside the package."""
