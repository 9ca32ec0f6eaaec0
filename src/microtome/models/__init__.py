"""Loading models, finding their anatomy, and the specimens that ship with the package."""
