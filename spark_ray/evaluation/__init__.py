"""How well a model writes and finds: predictions on Ray Data, metrics, slices and a report."""
