"""Logit lens, direct logit attribution and attribution patching."""
