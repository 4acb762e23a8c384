"""Tools that dumpstream is compared with, and readers that share no code with it."""
