"""Other libraries' own tests, run on SmolDriver: `make test-peers`, out of `make test`."""
