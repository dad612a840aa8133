"""Ray Serve: the gateway under `/v1`, its models, keys, assets and long jobs."""
