"""Floor 3: every network that we run, behind a few small protocols. No Ray."""
