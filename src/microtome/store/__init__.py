"""Arrays and tables on disk, written atomically, and run folders."""
