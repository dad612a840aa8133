"""The routes of the gateway: each module a router, each route a few lines over the services."""
