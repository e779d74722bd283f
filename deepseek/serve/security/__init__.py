"""Who may use a server and how much: API keys, rate limits, TLS, which URLs are fetched, the audit log."""
