"""The page to try models and watch the server: static files, and what they ask the server for."""
