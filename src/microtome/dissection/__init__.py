"""The main job: seven steps from a behavior to a report."""
