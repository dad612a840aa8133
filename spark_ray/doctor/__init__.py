"""What may be wrong with a machine, a cluster or a place before a job finds out."""
