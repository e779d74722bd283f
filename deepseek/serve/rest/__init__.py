"""HTTP: routes, requests and answers. Not here: what a model does."""
