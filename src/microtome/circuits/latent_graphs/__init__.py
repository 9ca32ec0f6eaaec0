"""Attribution graphs of one prompt over transcoders (Ameisen et al., 2025)."""
