"""The front end at `/ui`: pages over the HTTP interface, with the visitor's own key."""
