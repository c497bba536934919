"""Command line `safecb`: serve (the supervisor), worker, improve, evaluate, demo, and an HTTP client."""
