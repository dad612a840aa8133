"""Ray Train: the loop over Apotheon, its engines, checkpoints, tracking and registry."""
