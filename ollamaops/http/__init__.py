"""HTTP for hosts and registries: sessions, TLS, proxies, cancelling, failures, redaction."""
